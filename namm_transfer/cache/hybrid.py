"""The layers of a hybrid model that have no keys and values: linear attention, Mamba, short convolutions.

They hold a state of fixed size in transformers' own cache layers, which a `MemoryCache` contains beside its own. Such a
state cannot be taken back, so a call that an error ended half way would leave it ahead of other layers without a
trace; the calls of each layer are therefore counted, and a layer whose turn it is not is an error.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, cache_utils

from namm_transfer.cache.layer import MemoryLayer
from namm_transfer.errors import NammTransferError

ATTENTION = ("full_attention", "sliding_attention")
"""Types of layers with keys and values, as transformers names them."""
RECURRENT = ("linear_attention", "conv")
"""Types of layers with a state of fixed size."""
BOTH = ("hybrid", "hybrid_sliding")
"""Types of layers with keys and values and such a state."""
STATELESS = ("moe", "mlp")
"""Types of layers without either."""
STATES_SERVED = hasattr(cache_utils, "LinearAttentionLayer") and hasattr(cache_utils.Cache, "get_conv_state")
"""False with transformers before 5.24, whose hybrid models keep their states in other ways."""


def layer_kinds(config: PreTrainedConfig) -> list[str]:
    """Return the type of each layer of a text decoder.

    Raises:
        NammTransferError: some layers cannot be served, or none has keys and values.
    """
    kinds = list(getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers)
    kinds = kinds[: config.num_hidden_layers]
    served = (*ATTENTION, *RECURRENT, *BOTH, *STATELESS) if STATES_SERVED else ATTENTION
    if refused := sorted(set(kinds) - set(served)):
        raise NammTransferError(f"{config.model_type}: layers of type {', '.join(refused)} are not served")
    if not set(kinds) & {*ATTENTION, *BOTH}:
        raise NammTransferError(f"{config.model_type}: no layer has keys and values, all are {', '.join(set(kinds))}")
    if "reuse" in (getattr(config, "kv_sharing_modes", None) or ()):
        raise NammTransferError(
            f"{config.model_type}: layers that attend to the keys and values of another layer are not served"
        )
    if set(kinds) & {*RECURRENT, *BOTH} and getattr(config, "number_of_conv_states", 1) != 1:
        raise NammTransferError(f"{config.model_type}: layers with several states are not served")
    return kinds


class RecurrentStates:
    """The states of a hybrid model's layers, and how many calls each layer has gone through.

    Args:
        kinds: type of each of the model's layers.
        attention: the layers with keys and values, by their number in the model.
    """

    def __init__(self, kinds: list[str], attention: dict[int, MemoryLayer]) -> None:
        self._kinds, self._attention = kinds, attention
        self._used = [index for index, kind in enumerate(kinds) if kind not in STATELESS]
        self.reset()

    def reset(self) -> None:
        """Forget everything, the batch size included."""
        found = [index for index, kind in enumerate(self._kinds) if kind in (*RECURRENT, *BOTH)]
        self.layers: dict[int, Any] = {index: cache_utils.LinearAttentionLayer() for index in found}
        self._begun, self._open = dict.fromkeys(found, 0), set[int]()
        for layer in self._attention.values():
            layer.calls = 0

    def beside_attention(self) -> list[Any]:
        """All layers of the model, as transformers counts them; those without anything to hold get a dummy."""
        return [
            self._attention.get(index, self.layers.get(index)) or cache_utils.DummyLayer()
            for index in range(len(self._kinds))
        ]

    def __getitem__(self, index: int) -> Any:
        if index not in self.layers:
            raise NammTransferError(
                f"layer {index} of this MemoryCache has no recurrent or convolution state: one MemoryCache serves one "
                "model"
            )
        return self.layers[index]

    # -- one forward call --------------------------------------------------------------------------------------------

    def begin(self, index: int) -> None:
        """Begin a call of a layer with a state, which every model does by asking for its convolution state."""
        self.check_turn(index, self._begun[index])
        if index in self._open:
            raise NammTransferError(_OUT_OF_TURN.format(index))
        self._begun[index] += 1

    def store_convolution(self, index: int, inputs: Tensor, **options: Any) -> Tensor:
        """Give a layer its new convolution inputs, (batch, channels, new); its recurrent state, if any, has to follow.

        Decoding writes both states in place, without a call.
        """
        layer = self[index]
        if self._kinds[index] != "conv":
            self._open.add(index)
        return layer.update_conv_state(inputs, **options)

    def store_recurrent(self, index: int, state: Tensor, **options: Any) -> Tensor:
        """Give a layer its new recurrent state, (batch, ...)."""
        stored = self[index].update_recurrent_state(state, **options)
        self._open.discard(index)
        return stored

    def check_turn(self, index: int, calls: int) -> None:
        """Raise an error unless it is this layer's turn.

        Args:
            index: number of the layer in the model.
            calls: how many calls it has gone through.

        Raises:
            NammTransferError: the layer before it has not seen this call, or the last one not the previous call.
        """
        place, last = self._used.index(index), self._used[-1]
        before = self._calls(self._used[place - 1]) if place else []
        if any(n != calls + 1 for n in before) or (index != last and any(n != calls for n in self._calls(last))):
            raise NammTransferError(_OUT_OF_TURN.format(index))

    def _calls(self, index: int) -> list[int]:
        """Calls that the parts of a layer have gone through."""
        found = [self._begun[index]] if index in self._begun else []
        return [*found, self._attention[index].calls] if index in self._attention else found

    # -- rows, bytes -------------------------------------------------------------------------------------------------

    def select_rows(self, rows: Tensor) -> None:
        """Put these rows of the batch, (rows,) int64, in the place of the present ones."""
        for layer in self.layers.values():
            layer.reorder_cache(rows)

    @property
    def bytes(self) -> int:
        """Bytes that the states take."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The states by name, ``conv.LAYER`` and ``recurrent.LAYER``, each (batch, ...)."""
        found = {}
        for index, layer in self.layers.items():
            found |= {f"conv.{index}": layer.conv_states[0], f"recurrent.{index}": layer.recurrent_states[0]}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def restore(self, tensors: dict[str, Tensor], batch: int) -> None:
        """Take the states that `tensors` gave.

        Raises:
            NammTransferError: other states than this model has, or of another batch size.
        """
        expected = {f"conv.{index}" for index in self.layers}
        expected |= {f"recurrent.{index}" for index in self.layers if self._kinds[index] != "conv"}
        sizes = {len(tensor) for tensor in tensors.values()}
        if tensors.keys() != expected or not sizes <= {batch}:
            raise NammTransferError(
                f"states {sorted(tensors)} of {sorted(sizes)} sequences; expected {sorted(expected)} of {batch}"
            )
        for name, tensor in tensors.items():
            part, _, index = name.partition(".")
            layer, states = self[int(index)], {f"{part}_states": tensor}
            layer.lazy_initialization(**states)
            getattr(layer, f"{part}_states")[0].copy_(tensor)
            layer.has_previous_state[0] = True


_OUT_OF_TURN = (
    "layer {} is not where the layers before it are: an error ended an earlier call in mid-forward, and the states of "
    "recurrent layers cannot be taken back; make a new MemoryCache or reset() this one"
)
