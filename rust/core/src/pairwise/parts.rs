//! A slice that several threads write.

/// A slice in parts of `size`, which go to several threads.
pub struct Parts<'a, T> {
    first: *mut T,
    len: usize,
    size: usize,
    /// Keeps the slice borrowed.
    _slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: the slice is borrowed mutably for as long as this lives, and `part`'s callers hand each part to one thread.
unsafe impl<T: Send + Sync> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub fn new(slice: &'a mut [T], size: usize) -> Self {
        Parts {
            first: slice.as_mut_ptr(),
            len: slice.len(),
            size,
            _slice: std::marker::PhantomData,
        }
    }

    /// # Safety
    /// No other reference to this part or to the whole lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part(&self, number: usize) -> &mut [T] {
        let start = (number * self.size).min(self.len);
        let end = (start + self.size).min(self.len);
        // SAFETY: inside the slice; the caller vouches for its being alone.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(start), end - start) }
    }

    /// # Safety
    /// No part is being changed.
    pub unsafe fn whole(&self) -> &[T] {
        // SAFETY: the slice that was borrowed.
        unsafe { std::slice::from_raw_parts(self.first, self.len) }
    }
}
