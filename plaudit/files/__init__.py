"""Files of rows to score: reading, remembering what is done, writing. Torch-free, and knows no gRPC."""

from typing import Literal, TypeAlias

Format: TypeAlias = Literal["jsonl", "csv", "parquet"]
"""The formats that a file may have."""
