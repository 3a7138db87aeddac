"""`python -m bundle_mllm.cli`, which `accelerate launch -m` needs."""

import sys

from bundle_mllm.cli import main

sys.exit(main())
