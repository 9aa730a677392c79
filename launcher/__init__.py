"""launcher: from one recipe to a finished, evaluated, usable fine-tuned model."""

import logging

__version__ = "0.1.0"

# On import it speaks of kernels that are missing for evaluation in 4 bits, which no run here has (strategies/quantization.py).
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
