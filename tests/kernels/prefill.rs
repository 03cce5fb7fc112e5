//! What the tests of prefill's two forms share: one launch over a step, and the checks that both pass alike.

use half::{bf16, f16};
use rigel::backend::cuda::kernels::attention_prefill::{AttentionPrefill, PrefillShape, Tile, Variant, plan_tiles};
use rigel::backend::cuda::kernels::paged::{AttentionInputs, Heads, Sequence};
use rigel::backend::cuda::{Buffer, CudaError};

use crate::attention::{OnDevice, Step, World, assert_no_bank_conflicts, bits};
use crate::common::{self, Bench, Half};

pub fn heads(group: usize, kv: usize, dim: usize) -> Heads {
    Heads { query: group * kv, kv, dim }
}

/// The kernel in this form, which the device must run.
pub fn load<T: Half>(bench: &Bench, dim: usize, form: Variant) -> AttentionPrefill<T> {
    AttentionPrefill::load_variant(bench.device(), dim, form).unwrap()
}

/// Every schedule of devices that run this form.
pub fn on_every_schedule_of(form: Variant, body: impl Fn(&Bench)) {
    match form {
        Variant::Warp => common::on_every_schedule(body),
        Variant::Warpgroup => common::on_every_hopper_schedule(body),
    }
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
    pub fn new(bench: &Bench, world: &'a World<T>, form: Variant) -> Run<'a, T> {
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
pub fn outputs<T: Half>(bench: &Bench, attention: &AttentionPrefill<T>, form: Variant, step: Step) -> Vec<u16> {
    let world = World::<T>::new(step, 3);
    let mut run = Run::new(bench, &world, form);
    run.launch(bench, attention).unwrap();
    let width = world.step.heads.width();
    let Sequence { first_row, rows, .. } = world.sequences[0];
    bits(&run.found(bench)[first_row as usize * width..(first_row + rows) as usize * width])
}

/// Every step in this form as in float64, and its bytes.
pub fn agrees<T: Half>(form: Variant, steps: Vec<Step>) {
    let worlds: Vec<_> = (0..)
        .zip(steps)
        .map(|(seed, step)| {
            let world = World::<T>::new(step, seed);
            let reference = world.reference(world.step.window);
            (world, reference)
        })
        .collect();
    on_every_schedule_of(form, |bench| {
        let (narrow, wide) = (load::<T>(bench, 64, form), load::<T>(bench, 128, form));
        for (world, reference) in &worlds {
            let place = format!("{} {:?}", T::NAME, world.step);
            let mut run = Run::new(bench, world, form);
            let work = run.shape.work(&world.sequences, &run.tiles, world.step.page_size);
            bench.run(work, || run.launch(bench, if world.step.heads.dim == 64 { &narrow } else { &wide }));
            // The other form has no ldmatrix.
            if form == Variant::Warp {
                assert_no_bank_conflicts(&place);
            }
            reference.check(world, &run.found(bench), |_| true, &place);
        }
    });
}

/// That `agrees` has the power to see a window that is off by one, in every row that it makes a difference to: here 17
/// of them, from position `start` on.
pub fn a_window_off_by_one_is_seen(form: Variant, windows: [usize; 2], start: u32) {
    for window in windows {
        let step = Step { heads: heads(12, 1, 128), window: Some(window), page_size: 64, spans: vec![(start, 17)] };
        let world = World::<f16>::new(step, 7);
        let others = [window - 1, window + 1].map(|window| world.reference(Some(window)));
        on_every_schedule_of(form, |bench| {
            let attention = load(bench, 128, form);
            let mut run = Run::new(bench, &world, form);
            run.launch(bench, &attention).unwrap();
            let found = run.found(bench);
            world.reference(Some(window)).check(&world, &found, |_| true, "the right window");
            for (other, reference) in [window - 1, window + 1].into_iter().zip(&others) {
                for row in 1..18 {
                    assert!(reference.check_row(&found, row).is_err(), "row {row} passes for a window of {other}");
                }
            }
        });
    }
}

/// Each launch reads what the one before wrote and may start before that ends; then the same from a recording.
pub fn the_same_however_launched(form: Variant) {
    let spans = vec![(20, 30), (0, 0), (0, 5)];
    let world = World::<bf16>::new(Step { heads: heads(2, 2, 64), window: Some(33), page_size: 16, spans }, 5);
    on_every_schedule_of(form, |bench| {
        let attention = load(bench, 64, form);
        let (run, stream) = (Run::new(bench, &world, form), &bench.stream);
        let (tiles, first) = (run.tiles_on_device.view(), bench.download(run.device.queries.view()));
        let mut b = bench.upload(&first);
        // There and back: the outputs are the next queries.
        bench.assert_same_however_launched(&first, |a| {
            let inputs = AttentionInputs { queries: a.view(), ..run.device.inputs() };
            // SAFETY: the world's tables fit its rows and cache.
            unsafe { attention.launch(stream, run.shape, inputs, tiles, b.view_mut())? };
            let inputs = AttentionInputs { queries: b.view(), ..run.device.inputs() };
            // SAFETY: as above.
            unsafe { attention.launch(stream, run.shape, inputs, tiles, a.view_mut()) }
        });
    });
}
