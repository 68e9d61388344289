"""One patient's futures: asked for, drawn, explained, compared, handed over."""
