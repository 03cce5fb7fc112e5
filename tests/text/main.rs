//! Tokenizers and their files.

mod nano_text;
mod text_files;
mod tokenizer_reference;
