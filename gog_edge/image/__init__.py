"""Pictures as the runtime holds them: decoded once, upright, 8-bit RGB."""
