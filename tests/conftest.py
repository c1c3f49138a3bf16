"""Every test may use four (forced CPU) devices; no test may use the network."""

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
