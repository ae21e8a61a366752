"""The networks that decode: PiD's, and the small bundled one. Both are called as `PiD.velocity` is."""

from pixdec.models.nano import Nano, NanoCondition
from pixdec.models.pid import Condition, PiD

Network = PiD | Nano
NetworkCondition = Condition | NanoCondition
