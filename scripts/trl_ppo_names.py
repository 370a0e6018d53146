"""The settings of TRL's PPO, and what each is in this pipeline: the tables of `translate_trl_ppo`.

Names as in TRL's `ppo_config.py`: of 0.11 (`PPOConfig` of `trainer.step`), and of 0.12 to 1.12.
"""

from __future__ import annotations

from typing import Any

# TRL's defaults that differ from ours, by the two kinds of PPOConfig: a script that says nothing
# trained with these.
OLD_DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-5, "adap_kl_ctrl": True, "init_kl_coef": 0.2, "target": 6.0,
    "horizon": 10000, "lam": 0.95, "cliprange_value": 0.2, "batch_size": 256,
    "mini_batch_size": 1, "gradient_accumulation_steps": 1,
}  # fmt: skip
NEW_DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-5, "lam": 0.95, "cliprange_value": 0.2, "kl_coef": 0.05,
    "response_length": 53, "temperature": 0.7, "num_mini_batches": 1,
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
}  # fmt: skip
OLD_ONLY = {
    "ppo_epochs", "init_kl_coef", "adap_kl_ctrl", "target", "horizon", "kl_penalty", "steps",
    "early_stopping", "ratio_threshold", "score_clip", "use_score_scaling", "use_score_norm",
    "log_with", "tracker_project_name", "tracker_kwargs", "optimize_cuda_cache",
    "optimize_device_cache", "forward_batch_size", "compare_steps", "task_name", "query_dataset",
}  # fmt: skip
NEW_ONLY = {
    "num_ppo_epochs", "num_mini_batches", "total_episodes", "kl_coef", "kl_estimator",
    "response_length", "reward_model_path", "sft_model_path", "whiten_rewards",
    "missing_eos_penalty", "local_rollout_forward_batch_size", "num_sample_generations",
    "stop_token", "stop_token_id", "per_device_train_batch_size", "temperature",
}  # fmt: skip
# Under another key, in the same unit.
RENAMED = {
    "ppo_epochs": "ppo.num_ppo_epochs", "init_kl_coef": "beta", "kl_coef": "beta",
    "score_clip": "ppo.reward_clip", "use_score_scaling": "ppo.normalize_rewards",
    "response_length": "generation.max_new_tokens", "max_new_tokens": "generation.max_new_tokens",
    "temperature": "generation.temperature", "seed": "seed", "output_dir": "output_dir",
    "steps": "ppo.total_episodes", "exp_name": "name", "run_name": "name", "task_name": "name",
    "tracker_project_name": "tracking.project", "reward_model_path": "reward.source",
    "sft_model_path": "model.model_name_or_path", "model_name": "model.model_name_or_path",
    "model_name_or_path": "model.model_name_or_path", "model_revision": "model.model_revision",
    "trust_remote_code": "model.trust_remote_code", "use_peft": "model.use_peft",
    "attn_implementation": "model.attn_implementation", "r": "model.lora_r",
    "lora_r": "model.lora_r", "lora_alpha": "model.lora_alpha",
    "lora_dropout": "model.lora_dropout", "lora_target_modules": "model.lora_target_modules",
    "target_modules": "model.lora_target_modules", "dataset_name": "data.prompts_name",
    "dataset_config": "data.dataset_config", "dataset_train_split": "data.train_split",
    "non_eos_penalty": "ppo.missing_eos_penalty", "penalty_reward_value": "ppo.missing_eos_penalty",
    "no_cuda": "ppo.use_cpu", "warmup_ratio": "ppo.warmup_steps",
    "evaluation_strategy": "ppo.eval_strategy",
}  # fmt: skip
# Counted in rollouts by TRL's loop, in optimizer steps by the Trainer.
IN_ROLLOUTS = ("save_steps", "eval_steps", "logging_steps", "warmup_steps")
NO_COUNTERPART = {
    "ratio_threshold": "minibatches with large ratios are not dropped; ppo.target_kl ends an"
    " update",
    "use_score_norm": "the mean of the scores is left; only their deviation is divided by",
    "compare_steps": "it was read by nothing but the hub's best-so-far",
    "optimize_cuda_cache": "memory is handled by the trainer",
    "optimize_device_cache": "memory is handled by the trainer",
    "query_dataset": "it only told trackers a name",
    "reward_model": "an object here: set reward.source",
    "tracker_kwargs": "set tracking.project and name",
    "accelerator_kwargs": "set --accelerate on the command line",
    "project_kwargs": "set output_dir",
    "push_to_hub_if_best_kwargs": "set ppo.push_to_hub and ppo.load_best_model_at_end",
    "local_rollout_forward_batch_size": "ppo.per_device_train_batch_size scores, and"
    " generation.batch_size samples",
    "num_sample_generations": "ppo.log_completions of every rollout are kept",
    "stop_token": "a completion ends at the EOS of the model's generation config",
    "stop_token_id": "a completion ends at the EOS of the model's generation config",
    "dataset_num_proc": "prompts are read and tokenised at once",
    "dataset_test_split": "data.eval_prompts are kept out of the same prompts",
    "ds3_gather_for_generation": "there is no DeepSpeed; FSDP2 splits the weights",
    "model_adapter_name": "one adapter is trained",
    "ref_adapter_name": "the reference is the SFT model, with the adapter switched off",
    "vf_coef": "Adam's steps do not depend on it; set ppo.value_learning_rate",
    "max_grad_norm": "TRL's loop of 0.12 to 1.12 ignored it; gradients are clipped at 1 here",
    "max_steps": "TRL's loop did not read it; set ppo.total_episodes",
    "top_k": "completions are drawn from the policy's own distribution",
    "top_p": "completions are drawn from the policy's own distribution",
    "min_length": "completions are drawn from the policy's own distribution",
    "repetition_penalty": "completions are drawn from the policy's own distribution",
    "do_sample": "completions are always sampled",
    "pad_token_id": "padding is found by position",
    "eos_token_id": "a completion ends at the EOS of the model's generation config",
    "bias": "LoRA trains no biases here",
    "task_type": "the model is a causal language model",
    "whiten_advantages": "advantages are whitened as in TRL",
    "bf16": "TRL's was mixed precision; model.dtype: bfloat16 are the weights themselves",
    "fp16": "set model.dtype: float16",
    "load_in_8bit": "set model.quantization: 8bit",
    "load_in_4bit": "set model.quantization: 4bit",
    "forward_batch_size": "set ppo.per_device_train_batch_size",
    "remove_unused_columns": "columns are given to the reward by name",
}  # fmt: skip
# A value of these is what the trainer does anyway: nothing to say.
HARMLESS = {"top_k": (0, 0.0, -1), "top_p": (1, 1.0), "min_length": (-1, 0), "do_sample": (True,)}
REWARD_SHAPING = "reward_shaping_"
