"""The embedded default model: the persona world that it learns, its training and its measures."""
