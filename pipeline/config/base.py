"""What every section of an experiment's file is: immutable, checked, without unknown keys."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from pipeline.config.arguments import listed

Name = Annotated[str, Field(min_length=1)]
T = TypeVar("T")
# A key that is left out of what a result was made with unless the config sets it.
Unsaid = Annotated[T | None, Field(exclude_if=lambda value: value is None)]


class Section(BaseModel):
    """A part of the tree: immutable, no unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _one_item(cls, tree: Any) -> Any:
        """A list's only item may be given bare: `report_to: wandb`."""
        if not isinstance(tree, dict):
            return tree
        fields = cls.model_fields
        return {
            key: listed(value, _hint(fields[key])) if key in fields else value
            for key, value in tree.items()
        }


def _hint(field: FieldInfo) -> Any:
    """A field's type with its bounds."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


class TrainerSection(Section):
    """A section whose unknown keys go to the stage's trainer configuration."""

    model_config = ConfigDict(extra="allow")
