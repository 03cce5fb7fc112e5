//! The engine over a mock backend, and OpenAI's request and response bodies.

mod mock_backend;
#[cfg(feature = "nano")]
mod openai;
