//! The path without instructions of its own; also the definition that the others are tested against.

use super::{Form, Line, Matrix, Tile, COLUMNS, LINE, ROWS};

pub fn tile(form: Form, queries: &[f32], panel: &[Line], bias: &[Line; 2], out: &mut Tile) {
    for row in 0..ROWS {
        for column in 0..COLUMNS {
            let mut score = bias[column / LINE].0[column % LINE];
            for (d, q) in queries.chunks_exact(ROWS).enumerate() {
                let x = panel[2 * d + column / LINE].0[column % LINE];
                score = match form {
                    Form::Dot => q[row].mul_add(x, score),
                    Form::Distance => {
                        let difference = q[row] - x;
                        (-difference).mul_add(difference, score)
                    }
                };
            }
            out.0[row][column] = score;
        }
    }
}

/// Eight items at a time, so that eight chains run side by side.
#[inline(always)]
pub fn dots(query: &[f32], items: Matrix, bias: Option<&[f32]>, ids: &[i32], out: &mut [f32]) {
    const LANES: usize = 8;
    let start = |id: i32| bias.map_or(0.0, |bias| bias[id as usize]);
    let whole = ids.len() / LANES * LANES;
    for (ids, out) in ids.chunks_exact(LANES).zip(out.chunks_exact_mut(LANES)) {
        let rows: [&[f32]; LANES] = std::array::from_fn(|lane| &items.row(ids[lane] as usize)[..query.len()]);
        let mut sums: [f32; LANES] = std::array::from_fn(|lane| start(ids[lane]));
        for (d, &q) in query.iter().enumerate() {
            for lane in 0..LANES {
                sums[lane] = q.mul_add(rows[lane][d], sums[lane]);
            }
        }
        out.copy_from_slice(&sums);
    }
    for (&id, out) in ids[whole..].iter().zip(&mut out[whole..]) {
        let row = items.row(id as usize);
        *out = query.iter().zip(row).fold(start(id), |sum, (&q, &x)| q.mul_add(x, sum));
    }
}
