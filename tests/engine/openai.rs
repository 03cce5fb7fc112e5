//! OpenAI's bodies to requests, and samples to responses, on the bundled model's tokenizer and template. Nothing is
//! generated here: samples are made up, so that every number of a response is known.

use rigel::checkpoint::ModelSource;
use rigel::engine::{Engine, FinishReason, PromptToken, StopCause};
use rigel::openai::{
    Call, ChatBody, Collected, Collector, CompletionBody, Defaults, ErrorKind, Identity, Output, Sample, ServedModel,
};
use rigel::sampling::TokenLogprobs;
use rigel::text::{
    AddGenerationPrompt, ChatMessage, ChatTemplate, Infill, RepoContext, SpecialTokens, TokenId, Tokenizer,
};
use serde_json::{Value, json};

struct Nano {
    engine: Engine,
    served: ServedModel,
    tokenizer: Tokenizer,
    positions: usize,
    /// Kept, since a chat template is read when it is wanted.
    _files: Option<tempfile::TempDir>,
}

fn nano() -> Nano {
    served(ModelSource::nano(), None)
}

fn served(source: ModelSource, files: Option<tempfile::TempDir>) -> Nano {
    let engine = Engine::builder().device(rigel::backend::Device::Cpu).source(source.clone()).build().unwrap();
    let served = ServedModel::new(&engine, &source, "nano");
    let (tokenizer, positions) = (engine.tokenizer().unwrap().clone(), engine.spec().max_positions);
    Nano { engine, served, tokenizer, positions, _files: files }
}

/// Nano with one change to its files.
fn changed_nano(change: impl FnOnce(&dyn Fn(&str, &str, Value))) -> Nano {
    let dir = tempfile::tempdir().unwrap();
    for entry in
        std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/crates/rigel-nano/model")).unwrap().map(Result::unwrap)
    {
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    change(&|file, field, with| {
        let path = dir.path().join(file);
        let mut value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        value[field] = with;
        std::fs::write(path, value.to_string()).unwrap();
    });
    served(ModelSource::directory(dir.path()).unwrap(), Some(dir))
}

impl Nano {
    /// Runs a call's requests.
    fn outputs(&self, call: &Call) -> Vec<Output> {
        let collected = call.requests.iter().map(|request| {
            let mut collector = Collector::new(request.prompt.len(), request.n);
            let mut outputs =
                self.engine.generate(request.clone()).unwrap().filter_map(|event| match collector.push(event) {
                    Collected::More => None,
                    Collected::Done(output) => Some(output),
                    Collected::Failed(failure) => panic!("{failure}"),
                });
            outputs.next().unwrap()
        });
        collected.collect()
    }

    /// The first choice of a completion's body, and how many tokens it took.
    fn completed(&self, body: Value) -> (Value, usize) {
        let call = self.completion(body);
        let outputs = self.outputs(&call);
        let tokens = outputs[0].samples[0].token_ids.len();
        (self.response(&call, outputs)["choices"][0].clone(), tokens)
    }

    /// The same of a chat's.
    fn chatted(&self, body: Value) -> (Value, usize) {
        let call = self.chat(body);
        let outputs = self.outputs(&call);
        let tokens = outputs[0].samples[0].token_ids.len();
        (self.response(&call, outputs)["choices"][0].clone(), tokens)
    }

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
fn offsets_count_characters_and_every_token_has_its_entry() {
    let nano = nano();
    let echo = "é\u{1f600}b";
    let prompt = nano.ids(echo);
    let emoji = nano.ids("\u{1f600}");
    assert!(emoji.len() > 1, "the test is about characters of several tokens");
    let call = nano.completion(json!({"prompt": echo, "echo": true, "logprobs": 2, "max_tokens": 9}));
    assert_eq!((call.requests[0].logprobs, call.requests[0].prompt_logprobs), (Some(2), Some(2)));
    let completion = nano.ids("\u{1f600}c");
    // Both are parts of a character, and named by their bytes.
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
    let name = |id: TokenId| {
        String::from_utf8(nano.tokenizer.token_bytes(id).unwrap()).unwrap_or_else(|error| {
            error.as_bytes().iter().fold("bytes:".to_owned(), |name, byte| format!("{name}\\x{byte:02x}"))
        })
    };
    let second = top[1].as_object().unwrap();
    assert_eq!(
        (second.get(&name(TokenId(300))), second.get(&name(prompt[1]))),
        (Some(&json!(-0.5)), Some(&json!(-1.0)))
    );
    // Two parts of a character have an entry each. The chosen one's number is that of the list.
    let first = prompt.len();
    let parts = [0, 1].map(|part| name(emoji[part]));
    assert!(parts.iter().all(|name| name.starts_with("bytes:\\x")), "{parts:?}");
    assert_eq!(top[first], json!({&parts[1]: -2.0, &parts[0]: -1.0}));
    assert_eq!((&logprobs["token_logprobs"][first], &logprobs["tokens"][first]), (&json!(-1.0), &json!(parts[0])));
    let last = count - 1;
    let expected_last = -(completion.len() as f32 - 1.0) - 3.0;
    assert_eq!(top[last], json!({&parts[1]: -2.0, &parts[0]: -1.0, "c": expected_last}));
}

/// The counts are transformers' with these `stop_strings`.
#[test]
fn a_stop_may_be_a_special_token() {
    let nano = nano();
    let body = |stop: Value, more: Value| {
        let mut body =
            json!({"prompt": "def f", "max_tokens": 8, "temperature": 0, "logit_bias": {"6": 100}, "stop": stop});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (stop, tokens) in [(json!("<file_sep>"), 1), (json!(["<file_sep><file_sep>"]), 2), (json!(["sep>"]), 1)] {
        for shown in [true, false] {
            let (choice, found) = nano.completed(body(stop.clone(), json!({"skip_special_tokens": !shown})));
            assert_eq!((found, &choice["finish_reason"]), (tokens, &json!("stop")), "{stop}");
            assert_eq!(choice["text"], "", "{stop}");
        }
    }
    let (other, tokens) = nano.completed(body(json!("<repo_name>"), json!({})));
    assert_eq!((tokens, &other["finish_reason"], &other["text"]), (8, &json!("length"), &json!("")));
    // What is hidden stays hidden.
    let included = |more: Value| nano.completed(body(json!("sep><file_sep>"), more)).0["text"].clone();
    assert_eq!(included(json!({"include_stop_str_in_output": true})), "");
    let shown = json!({"include_stop_str_in_output": true, "skip_special_tokens": false});
    assert_eq!(included(shown), "<file_sep><file_sep>");
    // The end of text under ignore_eos; a chat.
    let end = json!({"ignore_eos": true, "logit_bias": {"0": 100}});
    assert_eq!(nano.completed(body(json!("<|endoftext|>"), end)).1, 1);
    let messages = json!([{"role": "user", "content": "Add."}]);
    let chat = json!({"messages": messages, "max_tokens": 8, "logit_bias": {"6": 100}, "stop": ["<file_sep>"]});
    assert_eq!(nano.chatted(chat).1, 1);
}

#[test]
fn a_stop_string_waits_for_min_tokens_as_an_id_does() {
    let nano = nano();
    let a = nano.ids("a")[0];
    let tokens = |more: Value| {
        let mut body =
            json!({"prompt": "def f", "max_tokens": 8, "temperature": 0, "logit_bias": {a.to_string(): 100}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        nano.completed(body)
    };
    assert_eq!(tokens(json!({"stop": ["a"]})).1, 1);
    let (choice, count) = tokens(json!({"stop": ["a"], "min_tokens": 3}));
    assert_eq!((count, &choice["text"], &choice["finish_reason"]), (4, &json!("aaa"), &json!("stop")));
    // A stop may begin before.
    assert_eq!(tokens(json!({"stop": ["aaa"], "min_tokens": 4})).1, 5);
    assert_eq!(tokens(json!({"stop": ["a"], "min_tokens": 8})).0["finish_reason"], "length");
}

#[test]
fn a_chat_ends_at_the_end_of_any_file() {
    let nano = changed_nano(|set| {
        set("config.json", "eos_token_id", json!([4, 99_999]));
        set("generation_config.json", "eos_token_id", json!(5));
        set("tokenizer_config.json", "eos_token", json!("<file_sep>"));
    });
    assert_eq!(nano.engine.chat_eos_token_ids(), [4, 5, 6].map(TokenId));
    assert_eq!(nano.engine.eos_token_ids(), [TokenId(5)]);
    let messages = json!([{"role": "user", "content": "Add."}]);
    for id in [4, 5, 6] {
        let bias = json!({id.to_string(): 100});
        let body = |ignore_eos: bool| json!({"messages": messages, "max_tokens": 4, "logit_bias": bias, "ignore_eos": ignore_eos});
        let (choice, tokens) = nano.chatted(body(false));
        assert_eq!((tokens, &choice["finish_reason"]), (1, &json!("stop")), "{id}");
        assert_eq!(nano.chatted(body(true)).1, 4, "{id}");
        // A completion keeps to generation_config.json.
        let completion = json!({"prompt": "x", "max_tokens": 4, "temperature": 0, "logit_bias": bias});
        assert_eq!(nano.completed(completion).1, if id == 5 { 1 } else { 4 }, "{id}");
    }
    // Nothing that ends it is chosen before min_tokens.
    let body = json!({"messages": messages, "max_tokens": 4, "min_tokens": 4, "logit_bias": {"6": 100}});
    assert_eq!(nano.chatted(body).0["finish_reason"], "length");
}

/// lm-eval calls a token greedy where it is the best of `top_logprobs`; the ids say what is true.
#[test]
fn every_position_has_its_entries_and_greedy_tokens_are_told() {
    const TEXT: &str = "x = 'h\u{e9}llo \u{1f389} \u{65e5}\u{672c}' # \u{2260}";
    let nano = nano();
    for n in [1, 5] {
        let body = json!({"prompt": TEXT, "max_tokens": 3, "temperature": 0, "logprobs": n, "echo": true});
        let call = nano.completion(body);
        let outputs = nano.outputs(&call);
        let (prompt, sample) = (outputs[0].prompt.clone(), outputs[0].samples[0].clone());
        let best_after = prompt.iter().map(|token| token.top.first().map(|(id, _)| *id));
        let ids: Vec<TokenId> = prompt.iter().map(|token| token.id).chain(sample.token_ids.clone()).collect();
        let best: Vec<Option<TokenId>> = std::iter::once(None)
            .chain(best_after.take(prompt.len() - 1))
            .chain(sample.logprobs.iter().map(|l| Some(l.top[0].0)))
            .collect();
        let response = nano.response(&call, outputs);
        let logprobs = &response["choices"][0]["logprobs"];
        let (mut greedy, mut partial) = (0, 0);
        for (i, top) in logprobs["top_logprobs"].as_array().unwrap().iter().enumerate().skip(1) {
            let top = top.as_object().unwrap();
            assert!(top.len() == n || top.len() == n + 1, "{n}: {} entries at {i}", top.len());
            let name = logprobs["tokens"][i].as_str().unwrap();
            let own = top[name].as_f64().unwrap();
            assert_eq!(Some(own), logprobs["token_logprobs"][i].as_f64(), "{i}");
            let better = top.values().filter(|value| value.as_f64().unwrap() > own).count();
            assert_eq!(better == 0, best[i] == Some(ids[i]), "{n}: {name} at {i}");
            greedy += usize::from(better == 0);
            partial += usize::from(name.starts_with("bytes:\\x"));
        }
        assert!(
            greedy >= 3 && greedy < ids.len() - 1 && partial > 1,
            "{greedy} greedy, {partial} parts of {}",
            ids.len()
        );
    }
}

/// Offsets, the pieces of a stream and the whole text agree, wherever a stop cuts.
#[test]
fn offsets_stay_within_the_text() {
    let nano = nano();
    let free = nano.completed(json!({"prompt": "def add(a, b):", "max_tokens": 12, "temperature": 0, "logprobs": 0}));
    let text = free.0["text"].as_str().unwrap().to_owned();
    assert!(text.is_ascii() && text.len() >= 8, "{text:?}");
    for start in 0..text.len() - 3 {
        let stop = &text[start..start + 3];
        let body =
            json!({"prompt": "def add(a, b):", "max_tokens": 12, "temperature": 0, "logprobs": 0, "stop": [stop]});
        let (choice, tokens) = nano.completed(body);
        let cut = choice["text"].as_str().unwrap();
        assert_eq!(cut, &text[..text.find(stop).unwrap()]);
        let offsets = choice["logprobs"]["text_offset"].as_array().unwrap();
        assert_eq!(offsets.len(), tokens);
        for (i, offset) in offsets.iter().enumerate() {
            let expected = free.0["logprobs"]["text_offset"][i].as_u64().unwrap().min(cut.len() as u64);
            assert_eq!(offset.as_u64(), Some(expected), "{stop:?} at token {i}");
        }
    }
}

/// A tokenizer that puts `<|endoftext|>` before every text: transformers' and vLLM's completions have it.
#[test]
fn a_text_gets_the_tokenizer_s_special_tokens() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "tokenizer_config.json", "model.safetensors"] {
        let nano = concat!(env!("CARGO_MANIFEST_DIR"), "/crates/rigel-nano/model/");
        std::fs::copy(format!("{nano}{name}"), folder.path().join(name)).unwrap();
    }
    let mut json: Value =
        serde_json::from_slice(include_bytes!("../../crates/rigel-nano/model/tokenizer.json")).unwrap();
    json["post_processor"] = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}});
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    let model = served(ModelSource::directory(folder.path()).unwrap(), Some(folder));
    let plain = nano();
    let prompt = |body: Value| model.completion(body).requests[0].prompt.clone();
    let bos = |ids: &[TokenId]| [&[TokenId(0)], ids].concat();
    let ids = model.ids("def f(x):");
    assert_eq!(ids, plain.ids("def f(x):"));
    assert_eq!(prompt(json!({"prompt": "def f(x):"})), bos(&ids));
    assert_eq!(prompt(json!({"prompt": [5, 6]})), [TokenId(5), TokenId(6)]);
    // They count, and are not cut off.
    assert_eq!(prompt(json!({"prompt": "def f(x):", "truncate_prompt_tokens": 3})), bos(&ids[ids.len() - 2..]));
    assert_eq!(prompt(json!({"prompt": [5, 6, 7], "truncate_prompt_tokens": 2})), [TokenId(6), TokenId(7)]);
    let body = json!({"prompt": "def f(x):", "truncate_prompt_tokens": 1});
    let refused = model.served.completion(CompletionBody::read(body, &Defaults::openai()).unwrap(), 0).unwrap_err();
    assert!(refused.message.starts_with("truncate_prompt_tokens is 1; expected"), "{}", refused.message);
    let infill = |nano: &Nano| nano.completion(json!({"prompt": "a", "suffix": "b"})).requests[0].prompt.clone();
    assert_eq!(infill(&model), bos(&infill(&plain)));
    // A template brings its own.
    let chat =
        |nano: &Nano| nano.chat(json!({"messages": [{"role": "user", "content": "x"}]})).requests[0].prompt.clone();
    assert_eq!(chat(&model), chat(&plain));

    // Echoed: the text as it was given, and the token before it takes none of it.
    let call = model.completion(json!({"prompt": "def f(x):", "echo": true, "logprobs": 0, "max_tokens": 0}));
    let token =
        |(index, &id): (usize, &TokenId)| PromptToken { id, logprob: (index > 0).then_some(-1.0), top: Vec::new() };
    let tokens: Vec<PromptToken> = bos(&ids).iter().enumerate().map(token).collect();
    let outputs = vec![Output {
        prompt_tokens: tokens.len(),
        prompt: tokens,
        samples: vec![sample(Vec::new(), Vec::new(), "", FinishReason::Length)],
    }];
    let response = model.response(&call, outputs);
    let (choice, logprobs) = (&response["choices"][0], &response["choices"][0]["logprobs"]);
    assert_eq!((&choice["text"], &logprobs["tokens"][0]), (&json!("def f(x):"), &json!("<|endoftext|>")));
    let mut expected = vec![0];
    for end in 0..ids.len() {
        let text = model.tokenizer.decode(&ids[..end], rigel::text::SpecialOutput::Keep).unwrap();
        expected.push(text.chars().count());
    }
    assert_eq!(logprobs["text_offset"], json!(expected));
}
