"""What a decoder's layers see when it reads text: computed in numpy, layer by layer, while the decoder is exported."""
