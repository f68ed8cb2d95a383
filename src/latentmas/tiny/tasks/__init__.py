"""The embedded model's two tasks, made by the generator; `build()` of each module returns its task."""
