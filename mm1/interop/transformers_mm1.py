"""Importing this makes transformers know MM1: its Auto classes open what ``export --to transformers`` wrote.

import mm1.interop.transformers_mm1
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
"""

from __future__ import annotations

from mm1.errors import UserError

try:
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
        PreTrainedTokenizerFast,
    )
except ImportError as error:
    raise UserError(
        f"transformers cannot be imported ({error}); expected it for this format: pip install 'mm1[transformers]'"
    ) from None

from mm1.interop.hf_model import MM1Config, MM1ForConditionalGeneration
from mm1.interop.hf_processing import MM1ImageProcessor, MM1Processor

__all__ = ["MM1Config", "MM1ForConditionalGeneration", "MM1ImageProcessor", "MM1Processor"]

AutoConfig.register(MM1Config.model_type, MM1Config, exist_ok=True)
AutoModelForImageTextToText.register(MM1Config, MM1ForConditionalGeneration, exist_ok=True)
AutoTokenizer.register(MM1Config, fast_tokenizer_class=PreTrainedTokenizerFast, exist_ok=True)
AutoImageProcessor.register(
    MM1Config, slow_image_processor_class=MM1ImageProcessor, fast_image_processor_class=MM1ImageProcessor, exist_ok=True
)
AutoProcessor.register(MM1Config, MM1Processor, exist_ok=True)
