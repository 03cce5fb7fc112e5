//! Peers in the same run: a Python process that times PyTorch's kernels on the same card and inputs, one request a line
//! (`tools/peers/kernels.py` says which there are).

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::backend::cuda::kernels::BiasTerm;
use crate::backend::cuda::kernels::linear::Epilogue;

use super::super::report::{Ceiling, Limit};
use super::case::{Case, What};

/// What the peers are, part of this program so that it needs no checkout.
const SCRIPT: &str = include_str!("../../../tools/peers/kernels.py");
/// The longest that a reply may take: a compiler may run meanwhile.
const PATIENCE: Duration = Duration::from_secs(180);

/// Why there is no peer, or none any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PeerError(String);

/// The process.
pub struct Peers {
    child: Child,
    requests: ChildStdin,
    replies: Receiver<String>,
    /// What it says it is: `torch 2.11.0 on NVIDIA H200`.
    pub description: String,
}

/// A peer that cannot do a case.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct MissingPeer {
    /// Its name.
    pub by: String,
    /// Why not.
    pub why: String,
}

/// What [`Peers::prepare`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Prepared {
    /// Who can do it.
    pub peers: Vec<String>,
    /// Who cannot.
    #[serde(default)]
    pub missing: Vec<MissingPeer>,
}

#[derive(Deserialize)]
struct Hello {
    versions: std::collections::BTreeMap<String, String>,
    device: String,
    cuda: bool,
}

#[derive(Deserialize)]
struct Measured {
    measured: Vec<Rate>,
}

#[derive(Deserialize)]
struct Rate {
    per_second: f64,
    how: String,
}

#[derive(Deserialize)]
struct Timed {
    samples_us: Vec<f64>,
    #[serde(default)]
    path: Option<String>,
}

impl Peers {
    /// Starts `python`, which must have PyTorch.
    ///
    /// # Errors
    /// A program that is not there, has no PyTorch, or sees no GPU.
    pub fn start(python: &str) -> Result<Peers, PeerError> {
        let mut command = Command::new(python);
        command.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| PeerError(format!("{python}: {error}")))?;
        let gone = || PeerError(format!("{python}: no pipe to it"));
        let requests = child.stdin.take().ok_or_else(gone)?;
        let (replies, errors) = (child.stdout.take().ok_or_else(gone)?, child.stderr.take().ok_or_else(gone)?);
        let (send, receive) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(replies).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let (last_words, complaint) = mpsc::channel();
        thread::spawn(move || {
            // Read on, so that the process is never stopped by a full pipe; the last line says why it ended.
            let mut last = String::new();
            for line in BufReader::new(errors).lines().map_while(Result::ok).filter(|line| !line.trim().is_empty()) {
                tracing::debug!("peer: {line}");
                last = line;
            }
            let _ = last_words.send(last);
        });
        let mut peers = Peers { child, requests, replies: receive, description: String::new() };
        let hello: Hello = peers.ask(&json!({"do": "hello"})).map_err(|error| {
            let why = complaint.recv_timeout(Duration::from_secs(2)).unwrap_or_default();
            PeerError(format!("{python}: {}", if why.is_empty() { error.0 } else { why }))
        })?;
        if !hello.cuda {
            return Err(PeerError(format!("{python}: its PyTorch sees no GPU")));
        }
        let torch = hello.versions.get("torch").cloned().unwrap_or_default();
        peers.description = format!("torch {torch} on {}", hello.device);
        Ok(peers)
    }

    /// The ceilings that they measure.
    ///
    /// # Errors
    /// A process that has ended, or says that it cannot.
    pub fn ceilings(&mut self) -> Result<Vec<Ceiling>, PeerError> {
        let mut ceilings = Vec::new();
        for (limit, word) in [(Limit::Bytes, "bytes"), (Limit::Flops, "flops")] {
            let Measured { measured } = self.ask(&json!({"do": "ceiling", "limit": word}))?;
            let by = "torch".to_owned();
            ceilings.extend(measured.into_iter().map(|Rate { per_second, how }| Ceiling {
                limit,
                by: by.clone(),
                per_second,
                how,
            }));
        }
        Ok(ceilings)
    }

    /// Allocates and fills the inputs of `case`; nobody can do what PyTorch has no word for.
    ///
    /// # Errors
    /// As for [`Peers::ceilings`].
    pub fn prepare(&mut self, case: &Case, dtype: &str, sets: usize, seed: u32) -> Result<Prepared, PeerError> {
        let Some(mut request) = request(case) else { return Ok(Prepared::default()) };
        for (name, value) in
            [("do", json!("prepare")), ("dtype", json!(dtype)), ("sets", json!(sets)), ("seed", json!(seed))]
        {
            request[name] = value;
        }
        self.ask(&request)
    }

    /// Samples of one of those that [`Peers::prepare`] named, in microseconds, and how it was done.
    ///
    /// # Errors
    /// As for [`Peers::ceilings`].
    pub fn time(&mut self, by: &str, budget: Duration) -> Result<(Vec<f64>, Option<String>), PeerError> {
        let budget_us = (budget.as_micros() as u64).max(1);
        let Timed { samples_us, path } = self.ask(&json!({"do": "time", "by": by, "budget_us": budget_us}))?;
        Ok((samples_us, path))
    }

    /// Gives the memory back.
    ///
    /// # Errors
    /// As for [`Peers::ceilings`].
    pub fn release(&mut self) -> Result<(), PeerError> {
        self.ask::<Value>(&json!({"do": "release"})).map(|_| ())
    }

    fn ask<A: DeserializeOwned>(&mut self, request: &Value) -> Result<A, PeerError> {
        let gone = || PeerError("the peers' process has ended".to_owned());
        let line = format!("{request}\n");
        self.requests.write_all(line.as_bytes()).and_then(|()| self.requests.flush()).map_err(|_| gone())?;
        let reply = self.replies.recv_timeout(PATIENCE).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                // A late reply would be taken for that of the next request.
                let _ = self.child.kill();
                PeerError(format!("no reply within {} s; the peers are asked no more", PATIENCE.as_secs()))
            }
            RecvTimeoutError::Disconnected => gone(),
        })?;
        let value: Value = serde_json::from_str(&reply).map_err(|error| PeerError(format!("a reply: {error}")))?;
        if let Some(error) = value.get("error").and_then(Value::as_str) {
            return Err(PeerError(error.to_owned()));
        }
        serde_json::from_value(value).map_err(|error| PeerError(format!("a reply: {error}")))
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // It may be computing; nobody waits for that.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A case in the peers' words; none where they have no such kernel.
fn request(case: &Case) -> Option<Value> {
    let linear = |epilogue: &str, rows: usize, columns: usize, depth: usize| json!({"kind": "linear", "epilogue": epilogue, "rows": rows, "columns": columns, "depth": depth});
    Some(match &case.what {
        What::Embed(shape) => {
            json!({"kind": "embed", "rows": shape.rows, "vocabulary": shape.vocabulary, "width": shape.width})
        }
        What::Norm(shape, _) => json!({"kind": "norm", "rows": shape.rows, "width": shape.width, "residual": false}),
        // Without the rotation and the write to the cache.
        What::Qkv(shape, bias) => {
            let epilogue = if *bias == BiasTerm::Present { "bias" } else { "none" };
            linear(epilogue, shape.rows, shape.gemm_shape().n, shape.k)
        }
        What::Product(_, epilogue, shape, BiasTerm::Present) => {
            let epilogue = match epilogue {
                Epilogue::BiasGelu => "bias_gelu",
                Epilogue::BiasResidual => "bias_residual",
            };
            linear(epilogue, shape.m, shape.n, shape.k)
        }
        What::Product(_, _, shape, BiasTerm::Absent) | What::Head(shape) => linear("none", shape.m, shape.n, shape.k),
        What::Decode { batch, context, shape, variant: None } => json!({
            "kind": "attention_decode", "batch": batch, "context": context, "heads": shape.heads.query,
            "kv_heads": shape.heads.kv, "head_dim": shape.heads.dim, "window": shape.window,
        }),
        What::Prefill { length, shape } => json!({
            "kind": "attention_prefill", "batch": 1, "length": length, "heads": shape.heads.query,
            "kv_heads": shape.heads.kv, "head_dim": shape.heads.dim, "window": shape.window,
        }),
        What::NormedProduct(..)
        | What::Decode { .. }
        | What::OrderedDecode { .. }
        | What::OrderedPrefill { .. }
        | What::Sample { .. }
        | What::Logprobs { .. } => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_python_that_is_not_there_or_has_no_torch_says_so() {
        let error = Peers::start("no-such-python").err().unwrap().to_string();
        assert!(error.starts_with("no-such-python: "), "{error}");
        // Not a Python at all.
        let error = Peers::start("false").err().unwrap().to_string();
        assert!(error.starts_with("false: "), "{error}");
    }
}
