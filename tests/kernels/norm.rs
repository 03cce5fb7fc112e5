//! `norm` against float64 loops.

use crate::common;
use crate::common::{Bench, Half, Random, assert_close};
use half::{bf16, f16};
use rigel::backend::cuda::CudaError;
use rigel::backend::cuda::kernels::BiasTerm;
use rigel::backend::cuda::kernels::norm::{MAX_WIDTH, Norm, NormShape, NormVariant, NormWeights};

/// One vector; a warp's worth of four each less one, exactly, and one more; odd; the models'; the widest.
const WIDTHS: [usize; 9] = [8, 1016, 1024, 1032, 2056, 3072, 4608, 6144, MAX_WIDTH];

const EPSILON: f32 = 1e-5;

/// The definition, on the values that the kernel was given.
fn reference<T: Half>(form: NormVariant, x: &[T], weight: &[T], bias: Option<&[T]>) -> Vec<f64> {
    let width = weight.len();
    let row = |x: &[T]| -> Vec<f64> {
        let x: Vec<f64> = x.iter().map(|value| value.f64()).collect();
        let mean = if form == NormVariant::Layer { x.iter().sum::<f64>() / width as f64 } else { 0.0 };
        let variance = x.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / width as f64;
        let inverse = 1.0 / (variance + f64::from(EPSILON)).sqrt();
        let shift = |column: usize| bias.map_or(0.0, |bias| bias[column].f64());
        x.iter().enumerate().map(|(i, value)| (value - mean) * inverse * weight[i].f64() + shift(i)).collect()
    };
    x.chunks_exact(width).flat_map(row).collect()
}

fn normalises<T: Half>(bench: &Bench, form: NormVariant) {
    let norm = Norm::<T>::load(bench.device(), form).unwrap();
    let mut random = Random(11);
    for (case, width) in WIDTHS.into_iter().enumerate() {
        let rows = [1, 2, 3][case % 3];
        let shape = NormShape { rows, width, epsilon: EPSILON };
        // A mean far from zero: one pass over squares would lose the variance in it.
        let hidden: Vec<T> = random.elements(rows * width, 8.0, 1.0);
        let weight: Vec<T> = random.elements(width, 1.0, 0.5);
        let bias: Option<Vec<T>> = (form == NormVariant::Layer).then(|| random.elements(width, 0.0, 1.0));
        let place = format!("{form:?} {} {rows} x {width}", T::NAME);

        let device_weight = bench.upload(&weight);
        let device_bias = bias.as_ref().map(|bias| bench.upload(bias));
        let device_bias = device_bias.as_ref().map(|bias| bias.view());
        let weights = NormWeights { weight: device_weight.view(), bias: device_bias };
        let bias_term = if bias.is_some() { BiasTerm::Present } else { BiasTerm::Absent };
        let slack = |expected: &[f64]| expected.iter().map(|value| 2e-5 * (1.0 + value.abs())).collect::<Vec<_>>();

        let device_hidden = bench.upload(&hidden);
        let mut out = bench.poisoned::<T>(rows * width);
        bench.run(shape.work(form, bias_term), || {
            norm.normalise(&bench.stream, shape, device_hidden.view(), weights, out.view_mut())
        });
        let expected = reference(form, &hidden, &weight, bias.as_deref());
        let slacks = slack(&expected);
        assert_close(&bench.download(out.view()), &expected, |i| slacks[i], &place);
        assert!(bench.download(device_hidden.view()) == hidden, "{place}: the input was changed");
    }
}

device_test! {
    fn layer_norm_agrees_with_its_definition() {
        common::on_every_schedule(|bench| {
            normalises::<bf16>(bench, NormVariant::Layer);
            normalises::<f16>(bench, NormVariant::Layer);
        });
    }
}

device_test! {
    fn rms_norm_agrees_with_its_definition() {
        common::on_every_schedule(|bench| {
            normalises::<bf16>(bench, NormVariant::Rms);
            normalises::<f16>(bench, NormVariant::Rms);
        });
    }
}

device_test! {
    fn layer_norm_works_without_a_bias() {
        common::on_every_schedule(|bench| {
            let norm = Norm::<bf16>::load(bench.device(), NormVariant::Layer).unwrap();
            let shape = NormShape { rows: 2, width: 264, epsilon: EPSILON };
            let mut random = Random(5);
            let (x, weight) = (random.elements::<bf16>(2 * 264, 0.0, 1.0), random.elements::<bf16>(264, 1.0, 0.5));
            let (hidden, device_weight) = (bench.upload(&x), bench.upload(&weight));
            let weights = NormWeights { weight: device_weight.view(), bias: None };
            let mut out = bench.poisoned(2 * 264);
            bench.run(shape.work(NormVariant::Layer, BiasTerm::Absent), || {
                norm.normalise(&bench.stream, shape, hidden.view(), weights, out.view_mut())
            });
            let expected = reference(NormVariant::Layer, &x, &weight, None);
            assert_close(&bench.download(out.view()), &expected, |_| 1e-4, "no bias");
        });
    }
}

device_test! {
    fn padding_of_a_row_stays_zero_and_out_of_the_statistics() {
        common::on_every_schedule(|bench| {
            for form in [NormVariant::Layer, NormVariant::Rms] {
                let norm = Norm::<f16>::load(bench.device(), form).unwrap();
                for width in [1, 7, 9, 100, 1023, 1025] {
                    let shape = NormShape { rows: 2, width, epsilon: EPSILON };
                    let pitch = shape.pitch();
                    assert!(pitch.is_multiple_of(8) && (width..width + 8).contains(&pitch));
                    let mut random = Random(3);
                    // Far from zero: padding that counted as elements would move the variance.
                    let x: Vec<f16> = random.elements(2 * width, 8.0, 1.0);
                    let weight: Vec<f16> = random.elements(width, 1.0, 0.5);
                    let padded = |rows: &[f16]| -> Vec<f16> {
                        let row = |row: &[f16]| {
                            let mut row = row.to_vec();
                            row.resize(pitch, f16::ZERO);
                            row
                        };
                        rows.chunks(width).flat_map(row).collect()
                    };
                    let (hidden, device_weight) = (bench.upload(&padded(&x)), bench.upload(&padded(&weight)));
                    let weights = NormWeights { weight: device_weight.view(), bias: None };
                    let mut out = bench.poisoned(2 * pitch);
                    bench.run(shape.work(form, BiasTerm::Absent), || {
                        norm.normalise(&bench.stream, shape, hidden.view(), weights, out.view_mut())
                    });
                    let found = bench.download(out.view());
                    let place = format!("{form:?}, {width}");
                    for (found, expected) in found.chunks(pitch).zip(reference(form, &x, &weight, None).chunks(width)) {
                        assert_close(&found[..width], expected, |i| 2e-5 * (1.0 + expected[i].abs()), &place);
                        assert!(found[width..].iter().all(|padding| *padding == f16::ZERO), "{place}");
                    }
                }
            }
        });
    }
}

device_test! {
    fn rows_are_gathered_before_they_are_normalised() {
        common::on_every_schedule(|bench| {
            let norm = Norm::<bf16>::load(bench.device(), NormVariant::Layer).unwrap();
            let (shape, rows) = (NormShape { rows: 3, width: 72, epsilon: EPSILON }, [4usize, 0, 4]);
            let mut random = Random(9);
            let x: Vec<bf16> = random.elements(5 * 72, 0.0, 1.0);
            let (weight, bias) = (random.elements::<bf16>(72, 1.0, 0.5), random.elements::<bf16>(72, 0.0, 1.0));
            let (hidden, device_weight, device_bias) = (bench.upload(&x), bench.upload(&weight), bench.upload(&bias));
            let weights = NormWeights { weight: device_weight.view(), bias: Some(device_bias.view()) };
            let gather = bench.stream.upload(&rows.map(|row| row as u32)).unwrap();
            let mut out = bench.poisoned(3 * 72);
            let (hidden, out_view) = (hidden.view(), out.view_mut());
            // SAFETY: `hidden` has five rows.
            unsafe { norm.gather_and_normalise(&bench.stream, shape, hidden, gather.view(), weights, out_view) }
                .unwrap();
            let gathered: Vec<bf16> = rows.iter().flat_map(|row| &x[row * 72..][..72]).copied().collect();
            let expected = reference(NormVariant::Layer, &gathered, &weight, Some(&bias));
            assert_close(&bench.download(out.view()), &expected, |i| 2e-5 * (1.0 + expected[i].abs()), "gathered");

            let short = gather.slice(..2).unwrap();
            // SAFETY: refused before it is launched.
            let refused = unsafe {
                norm.gather_and_normalise(&bench.stream, shape, hidden, short, weights, out.view_mut())
            };
            assert_eq!(refused.unwrap_err().to_string(), "norm: gather is 2, expected 3 elements");
        });
    }
}

device_test! {
    fn wrong_operands_are_refused_by_name() {
        common::on_every_schedule(|bench| {
            let norm = Norm::<bf16>::load(bench.device(), NormVariant::Rms).unwrap();
            let shape = NormShape { rows: 2, width: 16, epsilon: EPSILON };
            let hidden = bench.stream.zeroed::<bf16>(2 * 16).unwrap();
            let weight = bench.stream.zeroed::<bf16>(17).unwrap();
            let mut out = bench.stream.zeroed::<bf16>(2 * 16).unwrap();
            let mut refused = |shape, weights| {
                let result = norm.normalise(&bench.stream, shape, hidden.view(), weights, out.view_mut());
                let error = result.unwrap_err();
                assert!(matches!(error, CudaError::Operand { .. }));
                error.to_string()
            };
            let weights = NormWeights { weight: weight.slice(..16).unwrap(), bias: None };
            let biased = NormWeights { bias: Some(weights.weight), ..weights };
            assert_eq!(refused(shape, biased), "norm: bias is given, expected none for RMSNorm");
            let shifted = NormWeights { weight: weight.slice(1..).unwrap(), bias: None };
            assert_eq!(refused(shape, shifted), "norm: weight is aligned to 2 bytes, expected aligned to 16");
            let wide = NormShape { width: MAX_WIDTH + 8, ..shape };
            assert_eq!(refused(wide, weights), "norm: width is 16392, expected 1 to 16384");
            let empty = NormShape { width: 0, ..shape };
            assert_eq!(refused(empty, weights), "norm: width is 0, expected 1 to 16384");
            let tall = NormShape { rows: 3, ..shape };
            assert_eq!(refused(tall, weights), "norm: out is 32, expected 3 x 16 elements");
        });
    }
}
