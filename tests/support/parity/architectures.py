"""One small model of each architecture, made by transformers. The data of the parity tests.

`MODELS` maps a name to a transformers class and the settings of its config. A name is the config's
`model_type`, and after a colon what is special about the model: another head, or an option that
brings other norms. Sizes are as small as the classes allow; everything else is the class's default.
"""

import torch
import transformers

TEXT = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODER = {**TEXT, "num_key_value_heads": 1}
WIDE_HEADS = {**DECODER, "head_dim": 4}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
}
GPT2 = {
    "vocab_size": 32,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5 = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
BART = {
    "vocab_size": 32,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
WHISPER = {
    **BART,
    "num_mel_bins": 4,
    "max_source_positions": 8,
    "max_target_positions": 8,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
OPT = {
    "vocab_size": 32,
    "hidden_size": 16,
    "word_embed_proj_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 24,
    "max_position_embeddings": 32,
}
FALCON = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
DISTILBERT = {"vocab_size": 32, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
MODERNBERT = {**TEXT, "cls_token_id": 1, "sep_token_id": 2}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
GEMMA3_TEXT = {**WIDE_HEADS, "layer_types": ["sliding_attention", "full_attention"]}
QFORMER = {**TEXT, "encoder_hidden_size": 16}
BLIP2 = {"vision_config": VISION, "qformer_config": QFORMER, "num_query_tokens": 4}
QWEN2_VL_TEXT = {**DECODER, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
QWEN2_5_VL_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "out_hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 24,
    "patch_size": 4,
    "fullatt_block_indexes": [1],
}

# The architectures for which PEFT has default targets.
WITH_PEFT_DEFAULT = {
    "llama": ("LlamaForCausalLM", DECODER),
    "bloom": ("BloomForCausalLM", {"vocab_size": 32, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "llava": (
        "LlavaForConditionalGeneration",
        {"vision_config": VISION, "text_config": DECODER, "image_token_index": 31},
    ),
    "llava: tied embeddings": (
        "LlavaForConditionalGeneration",
        {
            "vision_config": VISION,
            "text_config": DECODER,
            "image_token_index": 31,
            "tie_word_embeddings": True,
        },
    ),
    "t5": ("T5ForConditionalGeneration", T5),
    "mt5": ("MT5ForConditionalGeneration", T5),
    "bart": ("BartForConditionalGeneration", BART),
    "bart: sequence classifier": ("BartForSequenceClassification", BART),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2: cross attention": ("GPT2LMHeadModel", {**GPT2, "add_cross_attention": True}),
    "blip-2": (
        "Blip2ForConditionalGeneration",
        {**BLIP2, "text_config": {"model_type": "opt", **OPT}},
    ),
    "blip-2: t5": (
        "Blip2ForConditionalGeneration",
        {**BLIP2, "text_config": {"model_type": "t5", **T5}},
    ),
    "gptj": ("GPTJForCausalLM", {**GPT2, "rotary_dim": 4}),
    "falcon": ("FalconForCausalLM", FALCON),
    "falcon: sequential": ("FalconForCausalLM", {**FALCON, "parallel_attn": False}),
    "falcon: new decoder": (
        "FalconForCausalLM",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 1},
    ),
    "mistral": ("MistralForCausalLM", DECODER),
    "phi": ("PhiForCausalLM", TEXT),
    "phi: query and key norms": ("PhiForCausalLM", {**TEXT, "qk_layernorm": True}),
    "gemma": ("GemmaForCausalLM", WIDE_HEADS),
    "gemma2": ("Gemma2ForCausalLM", WIDE_HEADS),
    "gemma3_text": ("Gemma3ForCausalLM", GEMMA3_TEXT),
    "qwen2": ("Qwen2ForCausalLM", DECODER),
    "qwen3": ("Qwen3ForCausalLM", WIDE_HEADS),
}

# Those for which it has none.
WITHOUT_PEFT_DEFAULT = {
    "bert": ("BertForSequenceClassification", TEXT),
    "bert: masked LM": ("BertForMaskedLM", TEXT),
    "roberta": ("RobertaForSequenceClassification", TEXT),
    "roberta: masked LM": ("RobertaForMaskedLM", TEXT),
    "xlm-roberta": ("XLMRobertaForMaskedLM", TEXT),
    "distilbert": ("DistilBertForSequenceClassification", DISTILBERT),
    "distilbert: masked LM": ("DistilBertForMaskedLM", DISTILBERT),
    "electra": ("ElectraForSequenceClassification", {**TEXT, "embedding_size": 8}),
    "electra: masked LM": ("ElectraForMaskedLM", {**TEXT, "embedding_size": 8}),
    "deberta-v2": ("DebertaV2ForSequenceClassification", TEXT),
    "deberta-v2: relative, convolution": (
        "DebertaV2ForMaskedLM",  # as microsoft/deberta-v2-xlarge has it
        {
            **TEXT,
            "relative_attention": True,
            "norm_rel_ebd": "layer_norm",
            "pos_att_type": ["p2c", "c2p"],
            "conv_kernel_size": 3,
        },
    ),
    "modernbert": ("ModernBertForSequenceClassification", MODERNBERT),
    "modernbert: masked LM": ("ModernBertForMaskedLM", MODERNBERT),
    "vit": ("ViTForImageClassification", VISION),
    "clip": (
        "CLIPModel",
        {"text_config": TEXT, "vision_config": VISION, "projection_dim": 8},
    ),
    "opt": ("OPTForCausalLM", OPT),
    "opt: norms after": (
        "OPTForCausalLM",  # as facebook/opt-350m has it
        {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 8},
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", TEXT),
    "phi3": ("Phi3ForCausalLM", DECODER),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        {**DECODER, **EXPERTS, "shared_expert_intermediate_size": 8},
    ),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**WIDE_HEADS, **EXPERTS}),
    "mixtral": ("MixtralForCausalLM", {**DECODER, "num_local_experts": 2}),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        {
            "text_config": GEMMA3_TEXT,
            "vision_config": VISION,
            "mm_tokens_per_image": 1,
            "image_token_index": 31,
        },
    ),
    "olmo2": ("Olmo2ForCausalLM", DECODER),
    "granite": ("GraniteForCausalLM", DECODER),
    "smollm3": ("SmolLM3ForCausalLM", DECODER),
    "whisper": ("WhisperForConditionalGeneration", WHISPER),
    "albert": ("AlbertForMaskedLM", {**TEXT, "embedding_size": 8}),
    "mbart": ("MBartForConditionalGeneration", BART),
    "m2m_100": ("M2M100ForConditionalGeneration", BART),
    "pegasus": ("PegasusForConditionalGeneration", BART),
    "deberta": ("DebertaForMaskedLM", TEXT),
    "mpnet": ("MPNetForMaskedLM", TEXT),
    "dinov2": ("Dinov2ForImageClassification", VISION),
    "siglip": ("SiglipModel", {"text_config": TEXT, "vision_config": VISION}),
    "gpt_neo": (
        "GPTNeoForCausalLM",
        {
            "vocab_size": 32,
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 2,
            "max_position_embeddings": 32,
            "attention_types": [[["global", "local"], 1]],
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "gpt_bigcode": (
        "GPTBigCodeForCausalLM",
        {**GPT2, "add_cross_attention": True, "multi_query": False},
    ),
    "starcoder2": ("Starcoder2ForCausalLM", DECODER),
    "stablelm": ("StableLmForCausalLM", DECODER),
    "stablelm: query and key norms": ("StableLmForCausalLM", {**DECODER, "qk_layernorm": True}),
    "cohere": ("CohereForCausalLM", DECODER),
    "cohere: query and key norms": ("CohereForCausalLM", {**DECODER, "use_qk_norm": True}),
    "gpt_oss": (
        "GptOssForCausalLM",
        {**WIDE_HEADS, "num_local_experts": 2, "num_experts_per_tok": 1, "rope_parameters": ROPE},
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLForConditionalGeneration",
        {"text_config": QWEN2_VL_TEXT, "vision_config": QWEN2_5_VL_VISION},
    ),
}

MODELS = WITH_PEFT_DEFAULT | WITHOUT_PEFT_DEFAULT


def make_model(name: str) -> torch.nn.Module:
    """A model of `MODELS`, without values: names, shapes and module types are all there is."""
    class_name, settings = MODELS[name]
    model_class = getattr(transformers, class_name)
    with torch.device("meta"):
        return model_class(model_class.config_class(**settings))
