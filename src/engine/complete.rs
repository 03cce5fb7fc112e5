//! Text in, text out, for programs that have no tokens.

use crate::text::SpecialTokens;

use super::{Completion, Engine, Failure, Request, RequestError};

impl Engine {
    /// Continues a text: greedily, by up to 256 tokens or as many as the model's positions leave, to the model's end of
    /// sequence. Waits for the end; [`Completion::text`] is the continuation, without the prompt.
    ///
    /// It is `engine.generate(engine.request(prompt)?)?.wait()`: where the text is wanted as it comes, or with other
    /// limits and sampling, write that out.
    ///
    /// # Errors
    /// [`Failure::Refused`] if [`Engine::request`] or [`Engine::generate`] refuses the prompt, and whatever ends the
    /// generation early.
    pub fn complete(&self, prompt: &str) -> Result<Completion, Failure> {
        self.generate(self.request(prompt)?)?.wait()
    }

    /// A greedy request for the continuation of a text: up to 256 tokens, or as many as the model's positions leave.
    ///
    /// The prompt gets the special tokens that the tokenizer puts around every prompt. Special tokens written in it are
    /// plain text, so that text of others cannot forge one; where they are to count, encode the prompt with
    /// [`SpecialTokens::Parse`] and give the ids to [`Request::new`].
    ///
    /// # Errors
    /// [`RequestError::NoTokenizer`] if the checkpoint has none, [`RequestError::Text`] if the tokenizer cannot encode
    /// the text. That it is empty or too long is for [`Engine::generate`] to say.
    pub fn request(&self, prompt: &str) -> Result<Request, RequestError> {
        let tokenizer = self.limits.tokenizer.as_ref();
        let tokenizer =
            tokenizer.ok_or_else(|| RequestError::NoTokenizer { file: self.limits.tokenizer_origin.clone() })?;
        let request = Request::new(tokenizer.encode_prompt(prompt, SpecialTokens::AsText)?);
        // A prompt that leaves nothing is refused, and not answered with nothing.
        let room = self.limits.spec.max_positions.saturating_sub(request.prompt.len()).max(1);
        let max_tokens = u32::try_from(room).map_or(request.max_tokens, |room| room.min(request.max_tokens));
        Ok(request.max_tokens(max_tokens))
    }
}

#[cfg(all(test, feature = "nano"))]
mod tests {
    use super::*;
    use crate::backend::Device;
    use crate::engine::{Event, FinishReason};
    use crate::text::TokenId;

    fn nano() -> Engine {
        Engine::builder().model("nano").device(Device::Cpu).build().unwrap()
    }

    #[test]
    fn text_goes_in_and_text_comes_out() {
        let engine = nano();
        let completion = engine.complete("def add(a, b):\n").unwrap();
        assert_eq!(completion.timings.completion_tokens, completion.token_ids.len());
        let request = engine.request("def add(a, b):\n").unwrap();
        assert_eq!((request.max_tokens, request.sampling.is_greedy()), (256, true));
        let mut streamed = String::new();
        for event in engine.generate(request).unwrap() {
            match event {
                Event::Token(token) => streamed += &token.text,
                Event::Finished(finish) => streamed += &finish.text,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(streamed, completion.text);
    }

    #[test]
    fn special_tokens_in_a_prompt_are_text() {
        let engine = nano();
        let prompt = engine.request("<fim_prefix>x").unwrap().prompt;
        assert!(prompt.len() > 2 && !prompt.contains(&engine.tokenizer().unwrap().id("<fim_prefix>").unwrap()));
    }

    #[test]
    fn a_prompt_leaves_what_it_leaves() {
        let engine = nano();
        let positions = engine.spec().max_positions;
        let long = |tokens: usize| engine.request(&"\n=".repeat(tokens)).unwrap();
        // Two tokens each, or one: whatever they are, the request fits, or is refused.
        let tokens = long(100).prompt.len();
        let request = long(100 * (positions - 8) / tokens);
        assert!(request.prompt.len() + request.max_tokens as usize <= positions);
        assert!((1..256).contains(&request.max_tokens), "{}", request.max_tokens);
        let most = request.max_tokens as usize;
        assert!(engine.generate(request).unwrap().wait().unwrap().token_ids.len() <= most);
        let refused = engine.complete(&"\n=".repeat(2 * positions)).unwrap_err();
        assert!(matches!(&refused, Failure::Refused(error) if matches!(**error, RequestError::PromptTooLong { .. })));
        assert!(engine.complete("").unwrap_err().to_string().contains("the prompt is empty"));
    }

    #[test]
    fn setters_are_the_fields() {
        let request = Request::new(vec![TokenId(40)]).max_tokens(3).n(2).stop("a").stop("b");
        assert_eq!((request.max_tokens, request.n, request.stop), (3, 2, vec!["a".to_owned(), "b".to_owned()]));
        let engine = nano();
        let request = Request::new(vec![TokenId(40)]).max_tokens(3);
        assert!(matches!(
            engine.generate(Request { ignore_eos: true, ..request }).unwrap().wait().unwrap().reason,
            FinishReason::Length
        ));
    }
}
