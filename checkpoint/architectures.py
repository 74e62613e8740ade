"""Every architecture that exports: decoders by the class that config.json names, others by their model type.

The mechanism in trace.py knows none of them: a line here says that a seeded two-layer model of the class was exported
and matched transformers in float32 (tests/export/test_zoo.py runs exactly this table). To add one, add its line and
its size overrides in tests/support/zoo.py; docs/architectures.md shows the steps.
"""

from piston.core.errors import UnsupportedModelError

# class in config.json -> model type in transformers
ARCHITECTURES = {
    "ApertusForCausalLM": "apertus",
    "ArceeForCausalLM": "arcee",
    "BioGptForCausalLM": "biogpt",
    "Cohere2ForCausalLM": "cohere2",
    "CohereForCausalLM": "cohere",
    "CwmForCausalLM": "cwm",
    "DiffLlamaForCausalLM": "diffllama",
    "Ernie4_5ForCausalLM": "ernie4_5",
    "Exaone4ForCausalLM": "exaone4",
    "GPT2LMHeadModel": "gpt2",
    "GPTBigCodeForCausalLM": "gpt_bigcode",
    "GPTNeoXForCausalLM": "gpt_neox",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3_text",
    "GemmaForCausalLM": "gemma",
    "Glm4ForCausalLM": "glm4",
    "GlmForCausalLM": "glm",
    "GraniteForCausalLM": "granite",
    "HeliumForCausalLM": "helium",
    "HunYuanDenseV1ForCausalLM": "hunyuan_v1_dense",
    "HyperCLOVAXForCausalLM": "hyperclovax",
    "Jais2ForCausalLM": "jais2",
    "LlamaForCausalLM": "llama",
    "Ministral3ForCausalLM": "ministral3",
    "MinistralForCausalLM": "ministral",
    "MistralForCausalLM": "mistral",
    "NanoChatForCausalLM": "nanochat",
    "NemotronForCausalLM": "nemotron",
    "OPTForCausalLM": "opt",
    "Olmo2ForCausalLM": "olmo2",
    "Olmo3ForCausalLM": "olmo3",
    "OlmoForCausalLM": "olmo",
    "PersimmonForCausalLM": "persimmon",
    "Phi3ForCausalLM": "phi3",
    "PhiForCausalLM": "phi",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "SeedOssForCausalLM": "seed_oss",
    "SmolLM3ForCausalLM": "smollm3",
    "StableLmForCausalLM": "stablelm",
    "Starcoder2ForCausalLM": "starcoder2",
    "VaultGemmaForCausalLM": "vaultgemma",
}
# Model types of encoders; tests/export/test_encoder.py runs this table and the next.
ENCODER_TYPES = (
    "albert",
    "bert",
    "camembert",
    "deberta-v2",
    "distilbert",
    "electra",
    "modernbert",
    "mpnet",
    "roberta",
    "xlm-roberta",
)
# Decoders that classify or embed by their last token.
DECODER_TYPES = ("gemma3_text", "llama", "mistral", "qwen2", "qwen3")
# Encoder-decoders of texts (tests/export/test_encoder_decoder.py runs this table), and of speech.
TEXT_TYPES = ("bart", "m2m_100", "marian", "mbart", "mt5", "pegasus", "t5", "umt5")
SPEECH_TYPES = ("whisper",)


def check_supported(architecture: str) -> None:
    """Refuse, by name and with the list of what works, a class that is not in the table."""
    if architecture not in ARCHITECTURES:
        supported = ", ".join(sorted(ARCHITECTURES))
        raise UnsupportedModelError(f"Architecture {architecture} is not supported; supported: {supported}.")
