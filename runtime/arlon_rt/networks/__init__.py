"""The networks of a bundle as functions of arrays, one a file, and `Networks`, which opens them all."""

from arlon_rt.networks.ar import AT_ONCE, Sampling, TokenStream
from arlon_rt.networks.captions import clean_caption, with_scores
from arlon_rt.networks.dit import Denoising, View, denoise
from arlon_rt.networks.embedding import Text, guidance_weights
from arlon_rt.networks.flow import schedule, timesteps
from arlon_rt.networks.open import Networks, usual_precision
from arlon_rt.networks.tables import position_table, rotary_tables
from arlon_rt.networks.text import TextEncoder, Tokenizer
from arlon_rt.networks.tokens import TokenGrid, TokenState
from arlon_rt.networks.vae import VAEDecoder, VAEEncoder, decoder_frame_index, encoder_frame_index
