"""Few-shot captioning and question answering: tasks from disk, prompts, answers, scores, each beside its blind arm."""
