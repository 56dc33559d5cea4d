"""The starter's tokenizer. In a file of its own, since ComfyUI's classes use it too, without diffusers."""

from collections.abc import Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .layout import END, START, TOKENS, UNKNOWN, vocabulary


def build_tokenizer(words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """One token per word; all other words become `<|unknown|>`. words: another vocabulary than the starter's."""
    ids = {word: index for index, word in enumerate(words or vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, ids[START]), (END, ids[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        unk_token=UNKNOWN,
        pad_token=END,
        model_max_length=TOKENS,
    )
