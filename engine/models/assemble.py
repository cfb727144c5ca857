"""Builds the resident base from a checkpoint: one tensor at a time, quantized as it arrives."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from multiflora.adapters.target import Projection, TargetModule
from multiflora.kernels import nf4
from multiflora.kernels.ops import DenseWeight, Ops, Weight
from multiflora.kernels.quantize import double_quantize

from ..config import BaseConfig
from ..errors import InvalidCheckpoint
from .bnb_format import encode_linear, is_quantized, take_nf4
from .checkpoint import Checkpoint
from .config import EMBEDDING, HEAD, ModelConfig
from .digest import TensorDigest
from .weights import BaseWeights, LayerWeights

# How a checkpoint was made, and which tokens end an answer, is no part of what the base computes.
UNIDENTIFYING = ("checkpoint_dtype", "prequantized", "eos_token_ids", "bos_token_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentForm:
    """How weights are held: the backend's layout, the dtype of everything dense, the device."""

    base: BaseConfig
    ops: Ops
    dtype: torch.dtype
    device: torch.device


def assemble(
    checkpoint: Checkpoint,
    model: ModelConfig,
    form: ResidentForm,
    *,
    progress: Callable[[str, float], None],
) -> BaseWeights:
    """Read every tensor of ``checkpoint`` into the resident form.

    Weights are quantized from the checkpoint's own dtype. Raises `InvalidCheckpoint` for missing,
    surplus or misshapen tensors and `UnsupportedModel` for shapes that NF4 cannot hold.
    """
    reader = _Reader(checkpoint, model, form, progress)
    embedding = reader.embedding()
    layers = tuple(reader.layer(index) for index in range(model.num_layers))
    norm = reader.dense("model.norm.weight", (model.hidden_size,))
    head = reader.head(embedding)
    checkpoint.check_all_taken()
    return BaseWeights(
        embedding=embedding, layers=layers, norm=norm, head=head, digest=reader.digest.hexdigest()
    )


class _Reader:
    """One pass over a checkpoint in the decoder's order, hashing what it reads."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: ModelConfig,
        form: ResidentForm,
        progress: Callable[[str, float], None],
    ) -> None:
        self._checkpoint = checkpoint
        self._model = model
        self._form = form
        self._progress = progress
        config = {key: value for key, value in asdict(model).items() if key not in UNIDENTIFYING}
        self.digest = TensorDigest([config, _quantization(form.base)])

    def layer(self, index: int) -> LayerWeights:
        """Read decoder layer ``index``."""
        model, prefix = self._model, f"model.layers.{index}"
        qkv, o, gate_up, down = model.projections()[4 * index : 4 * index + 4]
        hidden = (model.hidden_size,)
        qk_norm = (model.head_dim,) if model.qk_norm else None
        return LayerWeights(
            qkv=self._projection(qkv),
            qkv_bias=self._bias(qkv, present=model.qkv_bias),
            o=self._projection(o),
            o_bias=self._bias(o, present=model.o_bias),
            gate_up=self._projection(gate_up),
            gate_up_bias=self._bias(gate_up, present=model.mlp_bias),
            down=self._projection(down),
            down_bias=self._bias(down, present=model.mlp_bias),
            input_norm=self.dense(f"{prefix}.input_layernorm.weight", hidden),
            post_attention_norm=self.dense(f"{prefix}.post_attention_layernorm.weight", hidden),
            q_norm=qk_norm and self.dense(f"{prefix}.self_attn.q_norm.weight", qk_norm),
            k_norm=qk_norm and self.dense(f"{prefix}.self_attn.k_norm.weight", qk_norm),
        )

    def embedding(self) -> Tensor:
        """Read the embedding; a base whose head alone is stored and tied uses that."""
        name = EMBEDDING
        if self._model.tie_embeddings and EMBEDDING not in self._checkpoint:
            name = HEAD
        return self._table(name)

    def head(self, embedding: Tensor) -> Weight:
        """Read or share the head, in the model's dtype unless the config or checkpoint says NF4."""
        target = TargetModule("lm_head", *self._table_shape)
        if self._model.tie_embeddings:
            return self._tied_head(target, embedding)
        if is_quantized(self._checkpoint, HEAD):
            return self._packed(self._take_nf4(target))
        if self._form.base.quantize_head:
            return self._packed(self._quantize(target))
        return DenseWeight(self._table(HEAD))

    def dense(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Read a tensor that is resident unquantized, in the model's dtype."""
        return self._plain(name, shape).to(self._form.device, self._form.dtype)

    def _table(self, name: str) -> Tensor:
        """The embedding or the head, in the dtype that the backend wants."""
        tensor = self._plain(name, self._table_shape)
        dtype = self._form.ops.table_dtype(tensor.dtype, self._form.dtype)
        return tensor.to(self._form.device, dtype)

    def _plain(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self._take(name, shape)
        self.digest.add(name, tensor)
        return tensor

    @property
    def _table_shape(self) -> tuple[int, int]:
        return self._model.vocab_size, self._model.hidden_size

    def _tied_head(self, target: TargetModule, embedding: Tensor) -> Weight:
        if HEAD in self._checkpoint and EMBEDDING in self._checkpoint:
            self._check_duplicate(embedding)
        if self._form.base.quantize_head:
            name = EMBEDDING if EMBEDDING in self._checkpoint else HEAD
            return self._packed(self._quantize(target, name=name))
        return DenseWeight(embedding)

    def _check_duplicate(self, embedding: Tensor) -> None:
        copy = self._take(HEAD, self._table_shape).to(embedding.device, embedding.dtype)
        if not torch.equal(copy, embedding):
            raise InvalidCheckpoint(
                f"config.json ties the embeddings, but tensor {HEAD} differs from {EMBEDDING}"
            )

    def _projection(self, projection: Projection) -> Weight:
        """Read the slices of a stacked matmul, quantize each, and pack them as one matrix."""
        targets = projection.slices
        stored = [is_quantized(self._checkpoint, f"{target.path}.weight") for target in targets]
        if self._model.prequantized and not all(stored):
            # Kept unquantized on purpose (llm_int8_skip_modules): dense, with its neighbours.
            return DenseWeight(torch.cat([self._dense_slice(target) for target in targets]))
        if self._form.base.quantization == "none":
            return DenseWeight(_join([self._dense_slice(target) for target in targets]))
        parts = [
            self._take_nf4(target) if is_stored else self._quantize(target)
            for target, is_stored in zip(targets, stored, strict=True)
        ]
        return self._packed(nf4.concatenate(parts))

    def _dense_slice(self, target: TargetModule) -> Tensor:
        name = f"{target.path}.weight"
        if is_quantized(self._checkpoint, name):
            return nf4.dequantize(self._take_nf4(target), self._form.dtype)
        return self.dense(name, (target.out_features, target.in_features))

    def _quantize(self, target: TargetModule, *, name: str | None = None) -> nf4.Nf4Tensor:
        name = name or f"{target.path}.weight"
        dense = self._take(name, (target.out_features, target.in_features))
        plain = encode_linear(name, dense.to(self._form.device))
        self._digest_nf4(name, plain)
        if not self._form.base.double_quantization:
            return plain
        return replace(plain, absmax=double_quantize(plain.absmax))

    def _take_nf4(self, target: TargetModule) -> nf4.Nf4Tensor:
        name = f"{target.path}.weight"
        weight = take_nf4(self._checkpoint, name, (target.out_features, target.in_features))
        self._digest_nf4(name, weight)
        self._report()
        return replace(
            weight,
            codes=weight.codes.to(self._form.device),
            absmax=weight.absmax.to(self._form.device),
        )

    def _packed(self, weight: nf4.Nf4Tensor) -> Weight:
        return self._form.ops.pack_nf4(weight, self._form.dtype)

    def _bias(self, projection: Projection, *, present: bool) -> Tensor | None:
        if not present:
            return None
        return _join(
            [
                self.dense(f"{target.path}.bias", (target.out_features,))
                for target in projection.slices
            ]
        )

    def _digest_nf4(self, name: str, weight: nf4.Nf4Tensor) -> None:
        self.digest.add(f"{name}.codes", weight.codes)
        self.digest.add(f"{name}.absmax", weight.absmax)

    def _take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self._checkpoint.take_float(name, shape)
        self._report()
        return tensor

    def _report(self) -> None:
        self._progress("loading the base", self._checkpoint.progress)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _quantization(base: BaseConfig) -> dict[str, object]:
    return {
        "quantization": base.quantization,
        "double_quantization": base.double_quantization,
        "quantize_head": base.quantize_head,
    }
