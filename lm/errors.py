"""What can go wrong in the model layer.

LmError
├── ModelLoadError   a model or tokenizer can't be loaded, or isn't fit for its role
└── InputError       a value handed in is wrong; names the field and the fix
"""


class LmError(Exception):
    """Root of this layer's errors."""


class ModelLoadError(LmError):
    """A model or tokenizer can't be loaded, or isn't fit for its role."""


class InputError(LmError):
    """A value is wrong.

    `field` is a path such as "messages[1].content"; the edge prefixes it with its own.
    """

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}" if field else description)
        self.field = field
        self.description = description
