"""Triton's interpreter: the same tests run a second time, on its kernels (tests/test_triton.py)."""

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def prepare_once():
    """Calls among kernels prepare their module at the first, not again at every call: 5 ms each."""
    from triton.runtime import interpreter

    prepared = set()
    prepare = interpreter._patch_lang

    def call(self, *args, **kwargs):
        module = self.fn.__module__
        if not module.startswith("polyfuse") and module not in prepared:
            prepared.add(module)
            prepare(self.fn)
        return self.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call
