//! OpenAI's bodies to requests, and samples to responses, on the bundled model's tokenizer and template. Nothing is
//! generated here: samples are made up, so that every number of a response is known.

use rigel::checkpoint::ModelSource;
use rigel::engine::{Engine, FinishReason, PromptToken, StopCause};
use rigel::openai::{Call, ChatBody, CompletionBody, Defaults, ErrorKind, Identity, Output, Sample, ServedModel};
use rigel::sampling::TokenLogprobs;
use rigel::text::{
    AddGenerationPrompt, ChatMessage, ChatTemplate, Infill, RepoContext, SpecialTokens, TokenId, Tokenizer,
};
use serde_json::{Value, json};

struct Nano {
    served: ServedModel,
    tokenizer: Tokenizer,
    positions: usize,
}

fn nano() -> Nano {
    let engine = Engine::builder().device(rigel::engine::Device::Cpu).build().unwrap();
    let served = ServedModel::new(&engine, &ModelSource::nano(), "nano").unwrap();
    Nano { served, tokenizer: engine.tokenizer().unwrap().clone(), positions: engine.spec().max_positions }
}

impl Nano {
    fn completion(&self, body: Value) -> Call {
        self.served.completion(CompletionBody::read(body, &Defaults::openai()).unwrap(), 100).unwrap()
    }

    fn chat(&self, body: Value) -> Call {
        self.served.chat(ChatBody::read(body, &Defaults::openai()).unwrap(), 100).unwrap()
    }

    fn ids(&self, text: &str) -> Vec<TokenId> {
        self.tokenizer.encode(text, SpecialTokens::Parse).unwrap()
    }

    fn response(&self, call: &Call, outputs: Vec<Output>) -> Value {
        let identity = Identity { id: "x".into(), created: 7 };
        serde_json::to_value(call.response(&self.served, identity, outputs)).unwrap()
    }
}

fn sample(token_ids: Vec<TokenId>, logprobs: Vec<TokenLogprobs>, text: &str, reason: FinishReason) -> Sample {
    Sample { token_ids, logprobs, text: text.into(), reason }
}

#[test]
fn prompts_become_requests() {
    let nano = nano();
    let call = nano.completion(json!({"prompt": ["def f(", "<file_sep>x"], "n": 3, "max_tokens": 5, "stop": ["\n"]}));
    assert_eq!(call.requests.len(), 2);
    assert_eq!(call.requests[0].prompt, nano.ids("def f("));
    // Special tokens written in a prompt are those tokens.
    assert_eq!(call.requests[1].prompt[0], nano.tokenizer.id("<file_sep>").unwrap());
    let of = |call: &Call| call.requests.iter().map(|r| (r.n, r.max_tokens, r.sampling.seed)).collect::<Vec<_>>();
    // Without a seed no two samples of a call draw alike; with one, each prompt draws as it does alone.
    assert_eq!(of(&call), [(3, 5, 100), (3, 5, 103)]);
    assert_eq!(of(&nano.completion(json!({"prompt": ["a", "b"], "n": 3, "seed": 9}))), [(3, 16, 9), (3, 16, 9)]);
    assert_eq!(call.requests[0].stop, ["\n"]);
    let ids = nano.completion(json!({"prompt": [[5, 6], [7]]}));
    assert_eq!(ids.requests[0].prompt, [TokenId(5), TokenId(6)]);
    assert_eq!(ids.requests[1].prompt, [TokenId(7)]);
}

#[test]
fn lengths_shrink_to_the_room_there_is() {
    let nano = nano();
    let prompt = vec![5; nano.positions - 3];
    assert_eq!(nano.completion(json!({"prompt": prompt})).requests[0].max_tokens, 3);
    let full = vec![5; nano.positions];
    let body = |prompt: &[u32], max_tokens: u32| {
        let body = json!({"prompt": prompt, "max_tokens": max_tokens, "echo": true});
        nano.served.completion(CompletionBody::read(body, &Defaults::openai()).unwrap(), 0)
    };
    assert_eq!(body(&full, 0).unwrap().requests[0].max_tokens, 0);
    let error = body(&full, 1).unwrap_err();
    let (n_prompt_tokens, n_ctx) = (nano.positions, nano.positions);
    assert_eq!(error.kind, ErrorKind::ExceedsContext { n_prompt_tokens, n_ctx });
    let mut longer = full;
    longer.push(5);
    assert!(matches!(body(&longer, 0).unwrap_err().kind, ErrorKind::ExceedsContext { .. }));
    let cut = nano.completion(json!({"prompt": longer, "truncate_prompt_tokens": 4}));
    assert_eq!(cut.requests[0].prompt, [TokenId(5); 4]);
}

#[test]
fn a_chat_goes_through_the_template() {
    let nano = nano();
    let turns = [ChatMessage::user("Add."), ChatMessage::new("assistant", "Sum."), ChatMessage::user("Again.")];
    let call = nano.chat(json!({"messages": turns, "n": 2}));
    let template = ChatTemplate::from_source(&ModelSource::nano()).unwrap();
    let prompt = nano.ids(&template.render(&turns, AddGenerationPrompt::Yes).unwrap());
    assert_eq!(call.requests[0].prompt, prompt);
    assert_eq!(call.requests[0].max_tokens as usize, nano.positions - prompt.len());
    let refused = ChatBody::read(json!({"messages": [{"role": "system", "content": "x"}]}), &Defaults::openai());
    let refused = nano.served.chat(refused.unwrap(), 0).unwrap_err();
    assert!(refused.message.contains("System messages are not allowed"), "{refused}");
    assert_eq!(refused.param.as_deref(), Some("messages"));
}

#[test]
fn a_suffix_is_an_infill() {
    let nano = nano();
    let call = nano.completion(json!({"prompt": "a = ", "suffix": "\nb = 2", "stop_token_ids": [9]}));
    let infill = Infill::from_tokenizer(&nano.tokenizer).unwrap();
    let prompt = infill.prompt(&nano.tokenizer, "a = ", "\nb = 2", &RepoContext::default()).unwrap();
    assert_eq!(call.requests[0].prompt, prompt);
    assert_eq!(call.requests[0].stop_token_ids, [vec![TokenId(9)], infill.stop_token_ids()].concat());
}

#[test]
fn a_completion_s_response_has_its_documented_shape() {
    let nano = nano();
    let call = nano.completion(json!({"prompt": ["a", "b"], "n": 2}));
    let one = |text: &str, tokens: usize, reason| sample(vec![TokenId(5); tokens], Vec::new(), text, reason);
    let stop = FinishReason::Stop(StopCause::Eos(TokenId(0)));
    let output = |samples: Vec<Sample>| Output { prompt_tokens: 4, prompt: Vec::new(), samples };
    let outputs = vec![
        output(vec![one("p", 2, stop.clone()), one("q", 3, FinishReason::Length)]),
        output(vec![one("r", 1, stop), one("", 0, FinishReason::Length)]),
    ];
    let choice = |index: usize, text: &str, reason: &str| json!({"index": index, "text": text, "logprobs": null, "finish_reason": reason});
    let fingerprint = format!("rigel-{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        nano.response(&call, outputs),
        json!({"id": "cmpl-x", "object": "text_completion", "created": 7, "model": "nano",
            "system_fingerprint": fingerprint,
            "choices": [choice(0, "p", "stop"), choice(1, "q", "length"), choice(2, "r", "stop"),
                choice(3, "", "length")],
            "usage": {"prompt_tokens": 8, "completion_tokens": 6, "total_tokens": 14}})
    );
}

#[test]
fn a_chat_s_response_has_its_documented_shape() {
    let nano = nano();
    let call = nano.chat(json!({"messages": [{"role": "user", "content": "a"}], "logprobs": true, "top_logprobs": 2}));
    let [hi, there] = ["hi", "there"].map(|text| nano.ids(text)[0]);
    let texts = [hi, there].map(|id| String::from_utf8(nano.tokenizer.token_bytes(id).unwrap()).unwrap());
    let logprobs = TokenLogprobs { target: Some(-0.5), top: vec![(there, -0.25), (hi, -0.5)] };
    let outputs = vec![Output {
        prompt_tokens: 3,
        prompt: Vec::new(),
        samples: vec![sample(vec![hi], vec![logprobs], "hi", FinishReason::Length)],
    }];
    let response = nano.response(&call, outputs);
    let top = |index: usize, logprob: f32| json!({"token": texts[index], "logprob": logprob, "bytes": texts[index].as_bytes()});
    let mut token = top(0, -0.5);
    token["top_logprobs"] = json!([top(1, -0.25), top(0, -0.5)]);
    assert_eq!((&response["id"], &response["object"]), (&json!("chatcmpl-x"), &json!("chat.completion")));
    assert_eq!(
        response["choices"],
        json!([{"index": 0, "message": {"role": "assistant", "content": "hi", "refusal": null},
            "logprobs": {"content": [token], "refusal": null}, "finish_reason": "length"}])
    );
    assert_eq!(response["usage"], json!({"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}));
}

#[test]
fn offsets_count_characters_and_the_better_of_two_equal_texts_stays() {
    let nano = nano();
    let echo = "é\u{1f600}b";
    let prompt = nano.ids(echo);
    let emoji = nano.ids("\u{1f600}");
    assert!(emoji.len() > 1, "the test is about characters of several tokens");
    let call = nano.completion(json!({"prompt": echo, "echo": true, "logprobs": 2, "max_tokens": 9}));
    assert_eq!((call.requests[0].logprobs, call.requests[0].prompt_logprobs), (Some(2), Some(2)));
    let completion = nano.ids("\u{1f600}c");
    // Both are parts of a character, so both are written as the replacement character.
    let tops = vec![(emoji[1], -2.0), (emoji[0], -1.0)];
    let entry = |index: usize| TokenLogprobs { target: Some(-(index as f32) - 3.0), top: tops.clone() };
    let outputs = vec![Output {
        prompt_tokens: prompt.len(),
        prompt: prompt
            .iter()
            .enumerate()
            .map(|(index, &id)| PromptToken {
                id,
                logprob: (index > 0).then_some(-(index as f32)),
                top: vec![(TokenId(300 + index as u32), -0.5)],
            })
            .collect(),
        samples: vec![sample(
            completion.clone(),
            (0..completion.len()).map(entry).collect(),
            "\u{1f600}c",
            FinishReason::Length,
        )],
    }];
    let response = nano.response(&call, outputs);
    let choice = &response["choices"][0];
    assert_eq!(choice["text"], format!("{echo}\u{1f600}c"));
    let logprobs = &choice["logprobs"];
    let count = prompt.len() + completion.len();
    for field in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[field].as_array().unwrap().len(), count, "{field}");
    }
    // Characters before each token, counted from the decoded text of the tokens before it.
    let whole: Vec<TokenId> = prompt.iter().chain(&completion).copied().collect();
    for (index, offset) in logprobs["text_offset"].as_array().unwrap().iter().enumerate() {
        let decoded = nano.tokenizer.decode(&whole[..index], rigel::text::SpecialOutput::Keep).unwrap();
        let characters = decoded.trim_end_matches('\u{fffd}').chars().count();
        assert_eq!(offset.as_u64().unwrap() as usize, characters, "token {index}");
    }
    // A prompt's token stands beside what was best after the token before it, itself included.
    let top = logprobs["top_logprobs"].as_array().unwrap();
    assert_eq!(top[0], Value::Null);
    assert_eq!(logprobs["token_logprobs"][0], Value::Null);
    let name = |id: TokenId| nano.tokenizer.decode(&[id], rigel::text::SpecialOutput::Keep).unwrap();
    let second = top[1].as_object().unwrap();
    assert_eq!(
        (second.get(&name(TokenId(300))), second.get(&name(prompt[1]))),
        (Some(&json!(-0.5)), Some(&json!(-1.0)))
    );
    // Two ids of one text: the better stays. The chosen one's number is that of the list.
    let first = prompt.len();
    assert_eq!(top[first], json!({"\u{fffd}": -1.0}));
    assert_eq!(logprobs["token_logprobs"][first], json!(-1.0));
    let last = count - 1;
    let expected_last = -(completion.len() as f32 - 1.0) - 3.0;
    assert_eq!(top[last], json!({"\u{fffd}": -1.0, "c": expected_last}));
}
