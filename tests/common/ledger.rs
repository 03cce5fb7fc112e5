//! A backend that only keeps books: it stores token ids in pages as a model stores keys, and its next token is a hash
//! of the ids that its windows show. A page freed too early, shared wrongly or written by two, a row at a wrong
//! position or a chunk cut wrongly changes the text, or panics.

// Each test binary uses its part.
#![allow(dead_code)]

use std::num::NonZeroU32;

use rigel::backend::{Backend, BackendError, BackendHooks, Batch, DeviceInfo, Token};
use rigel::checkpoint::Dtype;
use rigel::engine::{Engine, EngineOptions};
use rigel::kv::{BlockTable, CacheGeometry, CacheGroup, KvFormat, PageId, first_visible};
use rigel::model::ModelSpec;
use rigel::sampling::{SampleError, SampleRow, Sampled, sample};
use rigel::text::TokenId;

pub const VOCAB: usize = 97;
pub const POSITIONS: usize = 300;
/// Ends a generation; drawn by chance alone.
pub const EOS: u32 = 96;

/// What one forward pass should do besides the determinism.
pub type Hook = Box<dyn FnMut(&Batch<'_>) -> Result<(), BackendError> + Send>;

pub struct Ledger {
    pub spec: ModelSpec,
    pub cache: CacheGeometry,
    pub max_rows: usize,
    pub max_logits_rows: usize,
    /// How many different tokens come out: few make texts that repeat themselves.
    pub variety: u32,
    pub poisoned_logits: bool,
    /// Rows of this token have logits that are not finite.
    pub poisoned_token: Option<u32>,
    pub hook: Hook,
    /// Whether steps may be given to it before the draws of the one before are finished.
    pub asynchronous: bool,
    /// Draws that were started.
    under_way: Option<Vec<Result<Sampled, SampleError>>>,
    /// The tokens of the last draws.
    drawn: Vec<u32>,
    /// The ids in the pages of each group.
    slots: Vec<Vec<Option<u32>>>,
    logits: Vec<f32>,
}

/// A layer for each window.
pub fn spec(windows: &[Option<u32>]) -> ModelSpec {
    let json = serde_json::json!({
        "model_type": "starcoder2", "vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": windows.len(),
        "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 64,
        "max_position_embeddings": POSITIONS, "eos_token_id": EOS, "bos_token_id": EOS,
    });
    let config = rigel::checkpoint::Config::parse(json.to_string().as_bytes(), "config.json").unwrap();
    let mut spec = ModelSpec::from_config(&config).unwrap();
    for (layer, of_layer) in spec.layers.iter_mut().zip(windows) {
        layer.attention.window = window(*of_layer);
    }
    spec
}

pub fn window(window: Option<u32>) -> Option<NonZeroU32> {
    window.map(|window| NonZeroU32::new(window).unwrap())
}

impl Ledger {
    /// With pages for one sequence.
    pub fn new(window: Option<u32>, page_size: u32, max_rows: usize) -> Ledger {
        Ledger::with_windows(&[window], page_size, max_rows)
    }

    /// A group of the cache for each window, with pages for one sequence.
    pub fn with_windows(windows: &[Option<u32>], page_size: u32, max_rows: usize) -> Ledger {
        let spec = spec(windows);
        let positions = spec.max_positions as u32;
        let group = |of_group: &Option<u32>| CacheGroup {
            window: window(*of_group),
            pages: CacheGeometry::pages_for_sequence(page_size, positions, window(*of_group), max_rows as u32),
            // Ids.
            format: KvFormat::Dense(Dtype::F32),
            page_bytes: 4 * u64::from(page_size),
        };
        let groups = windows.iter().map(group).collect();
        let ledger = Ledger {
            spec,
            cache: CacheGeometry { page_size: NonZeroU32::new(page_size).unwrap(), groups },
            max_rows,
            max_logits_rows: 3,
            variety: EOS,
            poisoned_logits: false,
            poisoned_token: None,
            hook: Box::new(|_| Ok(())),
            asynchronous: false,
            under_way: None,
            drawn: Vec::new(),
            slots: Vec::new(),
            logits: Vec::new(),
        };
        ledger.with_room(1.0)
    }

    /// With so many pages in each group.
    pub fn with_pages(mut self, pages: u32) -> Ledger {
        self.cache.groups.iter_mut().for_each(|group| group.pages = pages);
        self.with_room(1.0)
    }

    /// With so many times the pages that it has.
    pub fn with_room(mut self, room: f64) -> Ledger {
        for group in &mut self.cache.groups {
            group.pages = ((f64::from(group.pages) * room) as u32).max(1);
        }
        let slots = |group: &CacheGroup| vec![None; (self.cache.page_size.get() * group.pages) as usize];
        self.slots = self.cache.groups.iter().map(slots).collect();
        self
    }

    pub fn engine(self) -> Engine {
        self.engine_with(EngineOptions { poison_freed_pages: true, ..EngineOptions::default() })
    }

    pub fn engine_with(self, options: EngineOptions) -> Engine {
        Engine::with_backend(Box::new(self), None, "nowhere/tokenizer.json".into(), options).unwrap()
    }

    fn compute(&mut self, batch: &Batch<'_>, token_ids: &[TokenId]) -> Result<(), BackendError> {
        (self.hook)(batch)?;
        assert!(batch.tokens.len() <= self.max_rows && batch.logits_rows.len() <= self.max_logits_rows);
        self.logits.clear();
        for (group, of_group) in self.cache.groups.iter().enumerate() {
            let mut writers = vec![None; of_group.pages as usize];
            for (index, sequence) in batch.sequences.iter().enumerate() {
                assert_eq!(sequence.tables.len(), self.cache.groups.len());
                for (position, row) in (sequence.start..).zip(sequence.rows.clone()) {
                    let (page, slot) = place(self.cache.page_size, &sequence.tables[group], position);
                    let writer = writers[page.0 as usize].get_or_insert(index);
                    assert_eq!(*writer, index, "page {} has two writers", page.0);
                    self.slots[group][slot] = Some(token_ids[row].0);
                }
            }
        }
        for sequence in batch.sequences {
            for (position, row) in (sequence.start..).zip(sequence.rows.clone()) {
                if batch.logits_rows.contains(&row) {
                    let token = next_token(self.seen(sequence.tables, position), self.variety);
                    let poisoned = self.poisoned_logits || self.poisoned_token == Some(token_ids[row].0);
                    let mut logits = vec![if poisoned { f32::NAN } else { 0.0 }; VOCAB];
                    logits[token as usize] = 10.0;
                    self.logits.extend(logits);
                }
            }
        }
        Ok(())
    }

    /// The ids that a row sees, of one group after the other.
    fn seen(&self, tables: &[BlockTable], position: u32) -> impl Iterator<Item = u32> {
        self.cache.groups.iter().zip(tables).zip(&self.slots).flat_map(move |((group, table), slots)| {
            let visible = first_visible(position, group.window)..=position;
            visible.map(move |p| slots[place(self.cache.page_size, table, p).1].expect("a key"))
        })
    }
}

/// The page of a position, and its slot among those of all pages.
fn place(page_size: NonZeroU32, table: &BlockTable, position: u32) -> (PageId, usize) {
    let page = table.page(position / page_size).expect("a page");
    (page, (page.0 * page_size.get() + position % page_size) as usize)
}

/// The model: what follows the ids that the last of them sees.
fn next_token(seen: impl Iterator<Item = u32>, variety: u32) -> u32 {
    // Never EOS.
    seen.fold(17u32, |hash, id| hash.wrapping_mul(31).wrapping_add(id + 1)) % variety
}

/// What a greedy request gives.
pub fn expected(prompt: &[u32], new: usize, window: Option<u32>) -> Vec<u32> {
    expected_of(prompt, new, window, EOS)
}

pub fn expected_of(prompt: &[u32], new: usize, window: Option<u32>, variety: u32) -> Vec<u32> {
    expected_of_windows(prompt, new, &[window], variety)
}

pub fn expected_of_windows(prompt: &[u32], new: usize, windows: &[Option<u32>], variety: u32) -> Vec<u32> {
    let mut ids = prompt.to_vec();
    for _ in 0..new {
        let last = ids.len() as u32 - 1;
        let seen = windows.iter().flat_map(|of_group| &ids[first_visible(last, window(*of_group)) as usize..]);
        let token = next_token(seen.copied(), variety);
        ids.push(token);
    }
    ids.split_off(prompt.len())
}

impl Backend for Ledger {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }
    fn device(&self) -> DeviceInfo {
        DeviceInfo::Other { name: "a ledger".to_owned() }
    }
    fn cache(&self) -> &CacheGeometry {
        &self.cache
    }
    fn max_rows(&self) -> usize {
        self.max_rows
    }
    fn max_logits_rows(&self) -> usize {
        self.max_logits_rows
    }
    fn is_asynchronous(&self) -> bool {
        self.asynchronous
    }
    fn forward(&mut self, batch: &Batch<'_>) -> Result<(), BackendError> {
        let token = |token: &Token| match *token {
            Token::Known(id) => id,
            Token::Sampled(at) => {
                assert!(self.asynchronous, "draws are finished before the next step");
                TokenId(self.drawn[at as usize])
            }
        };
        let token_ids: Vec<TokenId> = batch.tokens.iter().map(token).collect();
        self.compute(batch, &token_ids)
    }
    fn logits(&mut self, row: usize) -> Result<&[f32], BackendError> {
        assert!(self.under_way.is_none(), "logits were asked for while draws are under way");
        Ok(&self.logits[row * VOCAB..][..VOCAB])
    }
    fn hooks(&mut self) -> Option<&mut dyn BackendHooks> {
        Some(self)
    }
    fn start_sampling(&mut self, rows: &[SampleRow<'_>]) -> Result<(), BackendError> {
        let draw = |row: &SampleRow<'_>| sample(&self.logits[row.logits_row * VOCAB..][..VOCAB], row);
        let drawn: Vec<_> = rows.iter().map(draw).collect();
        assert!(self.under_way.is_none(), "draws were started and not finished");
        self.drawn = drawn.iter().map(|drawn| drawn.as_ref().map_or(0, |drawn| drawn.token.0)).collect();
        self.under_way = Some(drawn);
        Ok(())
    }
    fn finish_sampling(&mut self) -> Result<Vec<Result<Sampled, SampleError>>, BackendError> {
        Ok(self.under_way.take().unwrap_or_default())
    }
}

impl BackendHooks for Ledger {
    fn poison(&mut self, group: usize, pages: &[PageId]) -> Result<(), BackendError> {
        let size = self.cache.page_size.get() as usize;
        pages.iter().for_each(|page| self.slots[group][page.0 as usize * size..][..size].fill(None));
        Ok(())
    }
}

pub fn ids(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().copied().map(TokenId).collect()
}

pub fn raw(ids: &[TokenId]) -> Vec<u32> {
    ids.iter().map(|t| t.0).collect()
}

pub fn prompt(len: u32) -> Vec<u32> {
    (0..len).map(|i| i * i % 89).collect()
}
