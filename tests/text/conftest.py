"""A tiny random Gemma-2 with a real tokenizer, saved as the real one is: causal model, bfloat16, left padding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pixdec.text import CHI_PROMPT, CaptionSettings, EmbeddingCache

WIDTH = 32


@pytest.fixture
def settings() -> CaptionSettings:
    return CaptionSettings(chi_prompt="Describe the picture in full.\nUser Prompt: ", tokens=24, width=WIDTH)


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="the caption encoder needs transformers")
    from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("gemma")
    backend = _tokenizer_backend()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", padding_side="left"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=backend.get_vocab_size(),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        max_position_embeddings=1024,
        initializer_range=0.3,  # scores far from uniform, so that what is attended to shows
    )
    Gemma2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "cache")


def _tokenizer_backend():  # a tokenizers.Tokenizer
    """Byte-pair encoding in Gemma's manner: spaces are part of the tokens, <bos> comes first, bytes as a fall-back."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special + byte_tokens, show_progress=False)
    backend.train_from_iterator([CHI_PROMPT, "a red fox in the snow at dusk, a harbour full of boats"], trainer)
    bos = backend.token_to_id("<bos>")
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    # Settings that travel in tokenizer.json and must not have a say.
    backend.enable_padding(direction="left", length=40)
    backend.enable_truncation(10)
    return backend
