//! `random` against the generator on the host, bit for bit.

use crate::common;
use crate::common::{Bench, Half};
use half::{bf16, f16};
use rigel::backend::cuda::CudaError;
use rigel::backend::cuda::kernels::random::{Random, RandomShape};
use rigel::backend::cuda::layout::RowOrder;
use rigel::model::Uniform;

fn bits<T: Half>(values: &[T]) -> &[u16] {
    bytemuck::cast_slice(values)
}

/// The matrix as its definition has it, `gap` where nothing is written.
fn expected<T: Half>(round: fn(f32) -> T, shape: RandomShape, order: RowOrder, values: Uniform, gap: T) -> Vec<T> {
    let mut out = vec![gap; (shape.rows - 1) * shape.stride + shape.columns];
    for row in 0..shape.rows {
        for column in 0..shape.columns {
            let index = order.source(row) * shape.columns + column;
            out[row * shape.stride + column] = round(values.value(index as u32));
        }
    }
    out
}

fn fills<T: Half>(bench: &Bench, round: fn(f32) -> T) {
    let random = Random::<T>::load(bench.device()).unwrap();
    let shape = |rows, columns, stride| RandomShape { rows, columns, stride };
    let pairs = |head_dim| RowOrder::Interleaved { head_dim };
    // A value, less than a block, more than a block and an odd number of everything, padded rows, vectors with their
    // rows permuted, more than all blocks take at once.
    let cases = [
        (shape(1, 1, 1), RowOrder::Natural),
        (shape(3, 5, 5), RowOrder::Natural),
        (shape(19, 37, 40), RowOrder::Natural),
        (shape(1, 1031, 1031), RowOrder::Natural),
        (shape(24, 13, 16), pairs(8)),
        (shape(12, 1, 1), pairs(6)),
        (shape(6, 300, 304), pairs(2)),
        (RandomShape::dense(67, 4099), RowOrder::Natural),
    ];
    for (number, (shape, order)) in cases.into_iter().enumerate() {
        let values = Uniform { seed: 0x9e37_79b9 ^ number as u32, centre: number as f32 * 0.5, range: 0.035 };
        // Between the rows and on either side of them, nothing is written.
        let poison: T = bytemuck::cast(0x7fffu16);
        let len = (shape.rows - 1) * shape.stride + shape.columns;
        let mut out = bench.upload(&vec![poison; len + 2]);
        let into = out.slice_mut(1..1 + len).unwrap();
        bench.run(shape.work(), || random.fill(&bench.stream, shape, order, values, into));
        let found = bench.download(out.view());
        let expected = [&[poison][..], &expected(round, shape, order, values, poison), &[poison]].concat();
        assert!(bits(&found) == bits(&expected), "{shape:?} {order:?}");
    }
}

device_test! {
    fn the_device_makes_the_host_s_values_bit_for_bit() {
        common::on_every_schedule(|bench| {
            fills(bench, bf16::from_f32);
            fills(bench, f16::from_f32);
        });
    }
}

device_test! {
    fn wrong_operands_are_refused_by_name() {
        common::on_one_schedule(|bench| {
            let random = Random::<bf16>::load(bench.device()).unwrap();
            let mut out = bench.stream.zeroed::<bf16>(2 * 16).unwrap();
            let values = Uniform { seed: 0, centre: 0.0, range: 1.0 };
            let mut refused = |rows, columns, stride, order| {
                let shape = RandomShape { rows, columns, stride };
                let error = random.fill(&bench.stream, shape, order, values, out.view_mut()).unwrap_err();
                assert!(matches!(error, CudaError::Operand { .. }));
                error.to_string()
            };
            let natural = RowOrder::Natural;
            let expected = "random_fill: out is 32, expected 2 rows of 14, 16 from row to row";
            assert_eq!(refused(2, 14, 16, natural), expected);
            assert_eq!(refused(2, 16, 15, natural), "random_fill: stride is 15, expected at least 16");
            assert_eq!(refused(0, 16, 16, natural), "random_fill: rows is 0, expected 1 to 4294967295");
            assert_eq!(refused(1 << 17, 1 << 15, 1 << 15, natural), "random_fill: columns is 32768, expected 1 to 32767");
            for head_dim in [0, 3, 4] {
                let expected = format!("random_fill: head_dim is {head_dim}, expected an even divisor of 2 rows");
                assert_eq!(refused(2, 16, 16, RowOrder::Interleaved { head_dim }), expected);
            }
        });
    }
}
