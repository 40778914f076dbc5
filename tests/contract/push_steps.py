"""Whole steps to push with the clients, and where they are pushed to."""

from policy_server import NewWeights

from lm.placement import DTYPE_NAMES
from plaudit import PushManifest, TensorSpec


class Step:
    """The policy of the folder with every tensor moved by `amount`: what a trainer would push."""

    def __init__(self, folder, amount=0.1, names=None):
        self.new = NewWeights(folder, amount, names)
        self.sha256, self.data = self.new.sha256, self.new.data

    def manifest(self, **changes):
        tensors = [
            TensorSpec(name, DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))
            for name, tensor in self.new.tensors
        ]
        fields = {"run_id": "run", "base_step": 0, "new_step": 1, "tensors": tensors}
        return PushManifest(**{**fields, "weights_sha256": self.sha256, **changes})

    def pieces(self, size):
        return [self.data[start : start + size] for start in range(0, len(self.data), size)]


class Eventful:
    """Pieces during whose sending something happens: `act(n)` before piece n is sent for the first time."""

    def __init__(self, pieces, act):
        self.pieces, self.act, self.seen = pieces, act, 0

    def __iter__(self):
        for number, piece in enumerate([*self.pieces, b""]):  # and once more behind the last
            if number >= self.seen:
                self.seen = number + 1
                self.act(number)
            yield piece
