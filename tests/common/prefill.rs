//! What the tests of prefill's two forms share: one launch over a step.

// Each test binary uses its part.
#![allow(dead_code)]

use rigel::backend::cuda::kernels::attention_prefill::{AttentionPrefill, Form, PrefillShape, Tile, plan_tiles};
use rigel::backend::cuda::kernels::paged::{Heads, Sequence};
use rigel::backend::cuda::{Buffer, CudaError};

use super::attention::{OnDevice, Step, World, bits};
use super::common::{Bench, Half};

pub fn heads(group: usize, kv: usize, dim: usize) -> Heads {
    Heads { query: group * kv, kv, dim }
}

/// What runs one step.
pub struct Run<'a, T> {
    pub device: OnDevice<'a, T>,
    pub shape: PrefillShape,
    pub tiles: Vec<Tile>,
    pub tiles_on_device: Buffer<Tile>,
    pub out: Buffer<T>,
}

impl<'a, T: Half> Run<'a, T> {
    /// Two tiles of padding go with those that the step needs in this form, one of them in front.
    pub fn new(bench: &Bench, world: &'a World<T>, form: Form) -> Run<'a, T> {
        let Step { heads, window, .. } = world.step;
        let planned = plan_tiles(&world.sequences, &heads, window, form, |_| true);
        let tiles = [&[Tile::PADDING], planned.as_slice(), &[Tile::PADDING]].concat();
        let shape = PrefillShape { rows: world.rows, tiles: tiles.len(), heads, window };
        let tiles_on_device = bench.stream.upload(&tiles).unwrap();
        let out = bench.poisoned(world.rows * heads.width());
        Run { device: world.upload(bench), shape, tiles, tiles_on_device, out }
    }

    pub fn launch(&mut self, bench: &Bench, attention: &AttentionPrefill<T>) -> Result<(), CudaError> {
        let (inputs, tiles) = (self.device.inputs(), self.tiles_on_device.view());
        // SAFETY: the world's tables fit its rows and cache.
        unsafe { attention.launch(&bench.stream, self.shape, inputs, tiles, self.out.view_mut()) }
    }

    pub fn found(&self, bench: &Bench) -> Vec<T> {
        bench.download(self.out.view())
    }
}

/// Bits of the outputs of the first sequence's rows.
pub fn outputs<T: Half>(bench: &Bench, attention: &AttentionPrefill<T>, form: Form, step: Step) -> Vec<u16> {
    let world = World::<T>::new(step, 3);
    let mut run = Run::new(bench, &world, form);
    run.launch(bench, attention).unwrap();
    let width = world.step.heads.width();
    let Sequence { first_row, rows, .. } = world.sequences[0];
    bits(&run.found(bench)[first_row as usize * width..(first_row + rows) as usize * width])
}
