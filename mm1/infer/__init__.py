"""Joins model, tokenizer and pixels: answers for people, for evaluation and for recaptioning."""
