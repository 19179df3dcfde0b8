//! Text in and out: tokenizers, streaming detokenisation, chat templates.
