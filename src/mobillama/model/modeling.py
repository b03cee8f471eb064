"""The model: Llama's attention, norms and rotary positions around FFNs that layers share.

Each FFN is one module, `model.ffns.K`, held by the model and handed to its layers in forward. So
every weight has one name and one storage, and saving, sharding, adapters, quantisation and export
find nothing unusual. Written against transformers 5.23.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from . import official, official_attention
from .configuration import MobiLlamaConfig

WRITES_RESIDUAL = "writes_residual"  # marks the projections that add to the residual stream


class MobiLlamaFFNDelta(nn.Module):
    """A layer's own low-rank addition `b @ a` to each of the three matrices of its FFN."""

    def __init__(self, config: MobiLlamaConfig) -> None:
        super().__init__()
        hidden, inner, rank = config.hidden_size, config.intermediate_size, config.ffn_delta_rank
        self.gate_a = nn.Parameter(torch.empty(rank, hidden))
        self.gate_b = nn.Parameter(torch.empty(inner, rank))
        self.up_a = nn.Parameter(torch.empty(rank, hidden))
        self.up_b = nn.Parameter(torch.empty(inner, rank))
        self.down_a = nn.Parameter(torch.empty(rank, inner))
        self.down_b = nn.Parameter(torch.empty(hidden, rank))

    def gate(self, hidden_states: Tensor) -> Tensor:
        """Return what is added to the gate projection: (..., hidden_size) to (..., intermediate_size)."""
        return low_rank(hidden_states, self.gate_a, self.gate_b)

    def up(self, hidden_states: Tensor) -> Tensor:
        """Return what is added to the up projection: (..., hidden_size) to (..., intermediate_size)."""
        return low_rank(hidden_states, self.up_a, self.up_b)

    def down(self, inner_states: Tensor) -> Tensor:
        """Return what is added to the down projection: (..., intermediate_size) to (..., hidden_size)."""
        return low_rank(inner_states, self.down_a, self.down_b)


def low_rank(states: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return `states @ (b @ a).T` without forming `b @ a`."""
    return nn.functional.linear(nn.functional.linear(states, a), b)


class MobiLlamaFFN(nn.Module):
    """A SwiGLU feed-forward network that any number of layers use."""

    def __init__(self, config: MobiLlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        setattr(self.down_proj, WRITES_RESIDUAL, True)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(
        self, hidden_states: Tensor, delta: MobiLlamaFFNDelta | None = None, gain: Tensor | None = None
    ) -> Tensor:
        """Return the FFN of (B, T, hidden_size) states, with the calling layer's delta and gain."""
        inner = self.inner_states(hidden_states, delta)
        if gain is not None:
            inner = inner * gain
        down = self.down_proj(inner)
        return down if delta is None else down + delta.down(inner)

    def inner_states(self, hidden_states: Tensor, delta: MobiLlamaFFNDelta | None) -> Tensor:
        """Return what `down_proj` reads, (B, T, intermediate_size), before the layer's gain."""
        gate, up = self.gate_proj(hidden_states), self.up_proj(hidden_states)
        if delta is not None:
            gate, up = gate + delta.gate(hidden_states), up + delta.up(hidden_states)
        return self.act_fn(gate) * up


class MobiLlamaDecoderLayer(GradientCheckpointingLayer):
    """Attention and norms of one layer, and what it adds of its own to the FFN it is given."""

    def __init__(self, config: MobiLlamaConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config, layer_idx)  # pyright: ignore[reportArgumentType]
        setattr(self.self_attn.o_proj, WRITES_RESIDUAL, True)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.ffn_delta = MobiLlamaFFNDelta(config) if config.ffn_delta_rank else None
        self.ffn_gain = nn.Parameter(torch.empty(config.intermediate_size)) if config.ffn_gains else None

    def forward(self, hidden_states: Tensor, ffn: MobiLlamaFFN, **attention_arguments: Any) -> Tensor:
        """Return the layer's (B, T, hidden_size) output, using `ffn` as its feed-forward network."""
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(hidden_states=hidden_states, **attention_arguments)
        hidden_states = residual + hidden_states

        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        return residual + ffn(hidden_states, self.ffn_delta, self.ffn_gain)


class MobiLlamaPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of the architecture, and how its weights start."""

    config: MobiLlamaConfig
    config_class = MobiLlamaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MobiLlamaDecoderLayer", "MobiLlamaFFN"]  # noqa: RUF012 - transformers' own type
    # A layer's FFN must not follow the layer to its device.
    _skip_keys_device_placement = ["past_key_values", "ffn"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": MobiLlamaDecoderLayer,
        "attentions": LlamaAttention,
    }

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Load a model as transformers does; of a released checkpoint, every shared FFN once.

        Raises:
            UserError: a released checkpoint is damaged, or its copies of the shared FFN differ.
        """
        source = official.find(pretrained_model_name_or_path, **kwargs)
        if source is None:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        release = official.Release(source)
        kwargs = {"config": release.config, **kwargs, "state_dict": release.state_dict()}
        return super().from_pretrained(None, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Start matrices as normal(0, initializer_range), as Llama does, with these differences.

        The two projections that write to the residual stream start smaller by sqrt(2 * layers), so
        that the stream grows less with depth: a shared FFN's outputs add up more than separate ones'
        do. Gains start at one and the deltas' `b` at zero: a layer begins as the plain FFN it shares.

        Source: Radford et al. 2019, section 2.3, for the residual scaling; the official code of
        arXiv 2402.16840 starts everything as normal(0, 0.02).
        """
        super()._init_weights(module)
        std = self.config.initializer_range
        # On the projection itself: transformers skips modules without weights of their own here.
        if isinstance(module, nn.Linear) and getattr(module, WRITES_RESIDUAL, False):
            init.normal_(module.weight, std=std / (2 * self.config.num_hidden_layers) ** 0.5)
        elif isinstance(module, MobiLlamaFFNDelta):
            for name, parameter in module.named_parameters():
                init.normal_(parameter, std=std) if name.endswith("_a") else init.zeros_(parameter)
        elif isinstance(module, MobiLlamaDecoderLayer) and module.ffn_gain is not None:
            init.ones_(module.ffn_gain)


class MobiLlamaModel(MobiLlamaPreTrainedModel):
    """The stack without the vocabulary head: tokens to hidden states."""

    def __init__(self, config: MobiLlamaConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.ffns = nn.ModuleList(MobiLlamaFFN(config) for _ in range(config.num_ffns))
        self.layers = nn.ModuleList(
            MobiLlamaDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)  # pyright: ignore[reportArgumentType]
        self.gradient_checkpointing = False
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Return `last_hidden_state` (B, T, hidden_size), after the final norm.

        Packed documents are kept apart in either of two ways, both without a cache:
        `position_ids` (B, T) that restart at 0 with each document, and no `attention_mask`; or a
        ready `attention_mask` of four dimensions, a flex-attention `BlockMask` included, which is
        used as it is (then give `position_ids` too, or positions run on).

        Arguments:
            input_ids: (B, T) int64; or `inputs_embeds`, (B, T, hidden_size).
            attention_mask: (B, past + T), 1 for tokens and 0 for padding; or four dimensions.
            position_ids: (B, T) int64; counts on from the cache where not given.
            use_cache: `config.use_cache` where not given, but never in training mode.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        assert inputs_embeds is not None
        if use_cache is None:
            # A cache nobody asked for would switch off the separation of packed documents.
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)

        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            # Only positions that were given can restart. Ours cannot, and a compiled graph, which
            # cannot look, would build the whole mask for them and lose the fast causal kernels.
            position_ids=position_ids,
        )
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (
                torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen
            ).unsqueeze(0)

        hidden_states = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        for layer, ffn in zip(self.layers, self.config.ffn_of_layer, strict=True):
            hidden_states = layer(
                hidden_states,
                ffn=self.ffns[ffn],
                attention_mask=causal_mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values
        )


class MobiLlamaForCausalLM(MobiLlamaPreTrainedModel, GenerationMixin):
    """The language model: tokens to vocabulary scores of the next token.

    Training that wants the loss without all logits takes `model.model(...)` for the hidden states
    and `model.lm_head.weight` for `torch.nn.functional.linear_cross_entropy`.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    _fsdp_plan = {"lm_head": "keep_full_weight"}  # noqa: RUF012
    # A model that sees has these; its language half alone is loaded without them.
    _keys_to_ignore_on_load_unexpected = ["vision_tower", "multi_modal_projector"]  # noqa: RUF012

    def __init__(self, config: MobiLlamaConfig) -> None:
        super().__init__(config)
        self.model = MobiLlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Return `logits` (B, T, vocab_size) and, with `labels`, the mean next-token `loss` in nats.

        Arguments beyond `MobiLlamaModel.forward`:
            labels: (B, T) int64, not shifted; positions of -100 do not count.
            logits_to_keep: logits of the last that many positions only; 0 for all.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


official_attention.register()
AutoModel.register(MobiLlamaConfig, MobiLlamaModel, exist_ok=True)
AutoModelForCausalLM.register(MobiLlamaConfig, MobiLlamaForCausalLM, exist_ok=True)
