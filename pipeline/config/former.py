"""Settings as older releases and recipes call them, and what to set today.

TRL renamed its PPO's settings twice and its trainers' many times, transformers 5 took names away,
and most tutorials and recipes were written before. Nothing is translated in silence: an old name
often had another unit or another default, so it is refused and today's key is named.
"""

from __future__ import annotations

_EOS = "nothing: a completion ends at the EOS tokens of the model's generation config"
_NONE = "nothing: it has no counterpart"
_NO_SCALING = "ppo.normalize_rewards (divides by the running deviation) or ppo.reward_clip"
_ONE_LENGTH = "dpo.max_length, of prompt and answer together"
_SAMPLED = "generation.max_new_tokens, and data.max_words for the texts"
_QUANTISED = "model.quantization (4bit or 8bit), with model.use_peft"
_SPLITS = "data.train_split, and data.heldout and data.eval_prompts for what is kept out"
_PROCESSES = "nothing: --accelerate and --num-processes choose the processes"

# By the name in any section, or by section and name. `{section}` is the section it was found in.
_FORMER: dict[str, str] = {
    # TRL up to 0.11: PPOConfig of the trainer with `step(queries, responses, scores)`
    "ppo_epochs": "ppo.num_ppo_epochs",
    "init_kl_coef": "the top-level beta",
    "adap_kl_ctrl": "ppo.kl_target for an adaptive coefficient, nothing for a fixed one",
    "target": "ppo.kl_target (nats a completion)",
    "horizon": "ppo.kl_horizon (episodes)",
    "kl_penalty": "ppo.kl_estimator (k1, k2, k3 or exact); the exact KL is logged in any case",
    "mini_batch_size": "ppo.num_mini_batches, how many there are, and"
    " ppo.per_device_train_batch_size, completions computed at once",
    "ppo.batch_size": "ppo.per_device_train_batch_size; a rollout is it ×"
    " ppo.gradient_accumulation_steps × ppo.num_mini_batches",
    "backward_batch_size": "ppo.per_device_train_batch_size",
    "forward_batch_size": "ppo.per_device_train_batch_size",
    "ppo.steps": "ppo.total_episodes (completions) or ppo.max_steps (optimizer steps)",
    "early_stopping": "ppo.target_kl, which skips the rest of an update",
    "ratio_threshold": "ppo.target_kl, which skips the rest of an update",
    "score_clip": "ppo.reward_clip",
    "use_score_scaling": _NO_SCALING,
    "use_score_norm": _NO_SCALING,
    "log_with": "tracking.report_to",
    "tracker_project_name": "tracking.project",
    "tracker_kwargs": "tracking.project and name",
    "query_dataset": "data.dataset_name or data.prompts_name",
    "reward_model": "reward.source",
    "is_peft_model": "model.use_peft",
    "optimize_cuda_cache": _NONE,
    "optimize_device_cache": _NONE,
    "exp_name": "name",
    "task_name": "name",
    # TRL 0.12 to 1.12: PPOConfig of the trainer with a reward model
    "reward_model_path": "reward.source",
    "sft_model_path": "model.model_name_or_path, and sft.skip for a model that is fine-tuned",
    "num_sample_generations": "ppo.log_completions",
    "local_rollout_forward_batch_size": "ppo.per_device_train_batch_size for scoring and"
    " generation.batch_size for sampling",
    "stop_token": _EOS,
    "stop_token_id": _EOS,
    "penalty_reward_value": "ppo.missing_eos_penalty",
    "non_eos_penalty": "ppo.missing_eos_penalty",
    "num_ppo_updates": "ppo.total_episodes (completions)",
    "model_name": "model.model_name_or_path",
    # TRL's other trainers and its recipes
    "ppo.max_seq_length": _SAMPLED,
    "ppo.max_seq_len": _SAMPLED,
    "ppo.cutoff_len": _SAMPLED,
    "max_seq_length": "{section}.max_length",
    "max_seq_len": "{section}.max_length",
    "cutoff_len": "{section}.max_length",
    "max_prompt_length": _ONE_LENGTH,
    "max_completion_length": _ONE_LENGTH + "; generation.max_new_tokens for what is sampled",
    "max_target_length": _ONE_LENGTH,
    "max_new_tokens": "generation.max_new_tokens",
    "use_liger": "{section}.use_liger_kernel",
    "reference_free": "nothing: the SFT model is the reference",
    "force_use_ref_model": "nothing: the SFT model is the reference",
    "ref_model": "nothing: the SFT model is the reference",
    "ref_adapter_name": "nothing: the SFT model is the reference",
    "rpo_alpha": "dpo.loss_type=[sigmoid, sft] and dpo.loss_weights",
    "generate_during_eval": "nothing: `rlhf compare` samples and measures",
    "dataset_mixer": "data.dataset_name",
    "dataset_splits": _SPLITS,
    "dataset_train_split": "data.train_split",
    "dataset_test_split": _SPLITS,
    "preprocessing_num_workers": "sft.dataset_num_proc and dpo.dataset_num_proc",
    "use_lora": "model.use_peft",
    "lora_rank": "model.lora_r",
    "lora_target": "model.lora_target_modules",
    "load_in_4bit": _QUANTISED,
    "load_in_8bit": _QUANTISED,
    "torch_dtype": "model.dtype",
    "attn_implementation": "model.attn_implementation",
    "use_flash_attention_2": "model.attn_implementation",
    # transformers.TrainingArguments
    "evaluation_strategy": "{section}.eval_strategy",
    "warmup_ratio": "{section}.warmup_steps: below 1 it is a share of all steps",
    "per_gpu_train_batch_size": "{section}.per_device_train_batch_size",
    "per_gpu_eval_batch_size": "{section}.per_device_eval_batch_size",
    "train_batch_size": "{section}.per_device_train_batch_size",
    "eval_batch_size": "{section}.per_device_eval_batch_size",
    "lr": "{section}.learning_rate",
    "epochs": "{section}.num_train_epochs",
    "num_epochs": "{section}.num_train_epochs",
    "total_steps": "{section}.max_steps",
    "no_cuda": "{section}.use_cpu",
    "use_mps_device": "nothing: the device is found",
    "group_by_length": "{section}.train_sampling_strategy=group_by_length",
    "adafactor": "{section}.optim=adafactor",
    "logging_dir": "the top-level output_dir",
    "overwrite_output_dir": "nothing: --overwrite on the command line",
    "save_safetensors": "nothing: weights are always written as safetensors",
    "push_to_hub_model_id": "{section}.hub_model_id",
    "push_to_hub_organization": "{section}.hub_model_id=organization/name",
    "push_to_hub_token": "the environment variable HF_TOKEN, which is never written to disk",
    "half_precision_backend": "{section}.bf16",
    "fp16_backend": "{section}.bf16",
    "world_size": _PROCESSES,
    "tpu_num_cores": _PROCESSES,
}  # fmt: skip

NAMES = tuple(_FORMER)
"""The old names, some with the section they were of."""

SECTIONS = ("sft", "reward", "ppo", "dpo", "model", "")
"""Where old names are looked for; "" is the top level."""


def today(section: str, key: str) -> str | None:
    """What to set instead of an old ``key`` of ``section``; None when it is no old name."""
    if section not in SECTIONS:
        return None
    text = _FORMER.get(f"{section}.{key}") or _FORMER.get(key)
    return None if text is None else text.format(section=section or "<stage>")
