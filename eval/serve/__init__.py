"""A page to talk to a checkpoint, or to two side by side: ``mm1-eval serve``. Gradio is spoken only here."""
