"""From a checked request to chunks of frames, in three lanes: drafting, denoising, decoding."""

from arlon_rt.generation.ahead import Ahead
from arlon_rt.generation.control import peak_memory
from arlon_rt.generation.decoding import Chunk
from arlon_rt.generation.drafting import all_tokens
from arlon_rt.generation.generation import Generation, Work
from arlon_rt.generation.snapshot import Machine, Snapshot
