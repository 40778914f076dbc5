"""JSON that says anything: good bodies with parts replaced, removed and added."""

import copy

from hostile_messages import TEXTS
from hypothesis import strategies as st

NUMBERS = (
    *(0, -1, 1, 2, 300, 2**31, 2**32, 2**63, 2**64, -(2**64), 10**400),
    *(0.0, -0.0, 0.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")),
)
SCALARS = st.sampled_from([None, True, False, *NUMBERS, *TEXTS, "\ud800", "a\udfffb"]) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TEXTS), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def mangled(draw, good, keys):
    """`good` with one to four parts replaced or removed, or with `keys` that it doesn't have."""
    body = [copy.deepcopy(draw(st.sampled_from(good)))]
    for _ in range(draw(st.integers(1, 4))):
        holder, key = draw(st.sampled_from(list(_places(body))))
        match draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"])):
            case "replace":
                holder[key] = draw(VALUES)
            case "add" if isinstance(holder[key], dict):
                holder[key][draw(st.sampled_from(keys) | st.sampled_from(["\ud800", *TEXTS]))] = draw(VALUES)
            case "remove" if holder is not body:
                del holder[key]
    return body[0]


def _places(holder):
    """(dict or list, key or index) of everything in `holder`, at any depth."""
    keys = holder if isinstance(holder, dict) else range(len(holder))
    for key in keys:
        yield holder, key
        if isinstance(holder[key], dict | list):
            yield from _places(holder[key])
