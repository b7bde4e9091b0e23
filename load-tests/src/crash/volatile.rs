//! A disk that forgets at a power cut: a VFS of SQLite over the default one, in which a write is in memory until its file is synced.
//!
//! Killing the process is then a power cut: what was written since the last sync is gone, but for what the kernel might have written back
//! by itself, which a seeded draw decides write by write (all of it, a prefix in sectors, or nothing). Deleting and creating files is not
//! delayed. All connections of the process share a file's image; other processes must not look at it.

use rusqlite::ffi;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard};

const SECTOR: usize = 512;
const DURABLE: c_int = ffi::SQLITE_OPEN_MAIN_DB | ffi::SQLITE_OPEN_MAIN_JOURNAL | ffi::SQLITE_OPEN_WAL;

enum Op {
    Write(u64, Vec<u8>),
    Truncate(u64),
}

/// A file as the process sees it, and what its disk does not have yet.
struct Image {
    now: Vec<u8>,
    pending: Vec<Op>,
    disk: File,
    draw: u64,
}

impl Image {
    fn write(&mut self, at: u64, data: &[u8]) -> std::io::Result<()> {
        let (from, to) = (at as usize, at as usize + data.len());
        if self.now.len() < to {
            self.now.resize(to, 0);
        }
        self.now[from..to].copy_from_slice(data);
        self.pending.push(Op::Write(at, data.to_vec()));
        // Xorshift (Marsaglia 2003).
        self.draw ^= self.draw << 13;
        self.draw ^= self.draw >> 7;
        self.draw ^= self.draw << 17;
        match self.draw % 4 {
            0 => self.disk.write_all_at(data, at),
            1 => self.disk.write_all_at(&data[..data.len() / SECTOR / 2 * SECTOR], at),
            _ => Ok(()),
        }
    }

    fn sync(&mut self) -> std::io::Result<()> {
        for op in self.pending.drain(..) {
            match op {
                Op::Write(at, data) => self.disk.write_all_at(&data, at)?,
                Op::Truncate(size) => self.disk.set_len(size)?,
            }
        }
        Ok(())
    }
}

/// Images by path, the default VFS, and the seed.
struct Disk {
    images: BTreeMap<Vec<u8>, Arc<Mutex<Image>>>,
    seed: u64,
}

static DISK: Mutex<Disk> = Mutex::new(Disk { images: BTreeMap::new(), seed: 0 });

fn disk() -> MutexGuard<'static, Disk> {
    DISK.lock().unwrap_or_else(|e| e.into_inner())
}

/// What SQLite keeps of an open file; the default VFS's own follows it.
#[repr(C)]
struct Open {
    base: ffi::sqlite3_file,
    /// Of `Arc::into_raw`; null for files that need not survive.
    image: *const Mutex<Image>,
}

/// Makes the disk of this process forgetful.
///
/// Call it before the first connection is opened.
pub fn install(seed: u64) {
    disk().seed = seed | 1;
    // SAFETY: the default VFS lives as long as the process; the copy is leaked, so it does, too.
    unsafe {
        let mut vfs = *ffi::sqlite3_vfs_find(std::ptr::null());
        vfs.szOsFile += size_of::<Open>() as c_int;
        vfs.zName = c"volatile".as_ptr();
        vfs.pNext = std::ptr::null_mut();
        vfs.xOpen = Some(open);
        vfs.xDelete = Some(delete);
        ffi::sqlite3_vfs_register(Box::leak(Box::new(vfs)), 1);
    }
}

unsafe fn default_vfs() -> *mut ffi::sqlite3_vfs {
    unsafe { ffi::sqlite3_vfs_find(c"unix".as_ptr()) }
}

unsafe fn real(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    unsafe { file.cast::<u8>().add(size_of::<Open>()).cast() }
}

unsafe extern "C" fn open(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite hands over room for `szOsFile` bytes, and a name that stays as long as the file is open.
    unsafe {
        let opened = file.cast::<Open>();
        (*opened).base.pMethods = std::ptr::null();
        (*opened).image = std::ptr::null();
        let default = default_vfs();
        let Some(open) = (*default).xOpen else { return ffi::SQLITE_CANTOPEN };
        let status = open(default, name, real(file), flags, out);
        if status != ffi::SQLITE_OK {
            return status;
        }
        if flags & DURABLE != 0 && !name.is_null() {
            let Some(image) = image(CStr::from_ptr(name)) else { return ffi::SQLITE_CANTOPEN };
            (*opened).image = Arc::into_raw(image);
        }
        (*opened).base.pMethods = &METHODS;
        ffi::SQLITE_OK
    }
}

fn image(name: &CStr) -> Option<Arc<Mutex<Image>>> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::path::Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
    let mut disk = disk();
    if let Some(image) = disk.images.get(name.to_bytes()) {
        return Some(Arc::clone(image));
    }
    let now = std::fs::read(path).ok()?;
    let file = OpenOptions::new().write(true).open(path).ok()?;
    let draw = disk.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(disk.images.len() as u64) | 1;
    let image = Arc::new(Mutex::new(Image { now, pending: Vec::new(), disk: file, draw }));
    disk.images.insert(name.to_bytes().to_vec(), Arc::clone(&image));
    Some(image)
}

unsafe extern "C" fn delete(_: *mut ffi::sqlite3_vfs, name: *const c_char, sync: c_int) -> c_int {
    // SAFETY: a name of SQLite's.
    unsafe {
        disk().images.remove(CStr::from_ptr(name).to_bytes());
        let default = default_vfs();
        (*default).xDelete.map_or(ffi::SQLITE_IOERR, |delete| delete(default, name, sync))
    }
}

/// Runs `body` with the image of a file, or the default VFS where there is none.
unsafe fn with(
    file: *mut ffi::sqlite3_file,
    body: impl FnOnce(&mut Image) -> c_int,
    otherwise: impl FnOnce(&ffi::sqlite3_io_methods, *mut ffi::sqlite3_file) -> Option<c_int>,
) -> c_int {
    // SAFETY: SQLite calls the methods of a file that `open` has filled, from one thread at a time.
    unsafe {
        match (*file.cast::<Open>()).image.as_ref() {
            Some(image) => body(&mut image.lock().unwrap_or_else(|e| e.into_inner())),
            None => delegate(file, otherwise),
        }
    }
}

unsafe fn delegate(
    file: *mut ffi::sqlite3_file,
    call: impl FnOnce(&ffi::sqlite3_io_methods, *mut ffi::sqlite3_file) -> Option<c_int>,
) -> c_int {
    // SAFETY: the default VFS has filled its part of the file.
    unsafe {
        let real = real(file);
        call(&*(*real).pMethods, real).unwrap_or(ffi::SQLITE_IOERR)
    }
}

fn status(done: std::io::Result<()>) -> c_int {
    if done.is_ok() { ffi::SQLITE_OK } else { ffi::SQLITE_IOERR_WRITE }
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    unsafe {
        let opened = file.cast::<Open>();
        if !(*opened).image.is_null() {
            drop(Arc::from_raw((*opened).image));
            (*opened).image = std::ptr::null();
        }
        delegate(file, |m, real| Some(m.xClose?(real)))
    }
}

unsafe extern "C" fn read(file: *mut ffi::sqlite3_file, to: *mut c_void, amount: c_int, at: i64) -> c_int {
    let from_image = |image: &mut Image| {
        let have = image.now.get(at as usize..).unwrap_or_default();
        let n = have.len().min(amount as usize);
        // SAFETY: SQLite's buffer has `amount` bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(have.as_ptr(), to.cast(), n);
            std::ptr::write_bytes(to.cast::<u8>().add(n), 0, amount as usize - n);
        }
        if n == amount as usize { ffi::SQLITE_OK } else { ffi::SQLITE_IOERR_SHORT_READ }
    };
    unsafe { with(file, from_image, |m, real| Some(m.xRead?(real, to, amount, at))) }
}

unsafe extern "C" fn write(file: *mut ffi::sqlite3_file, from: *const c_void, amount: c_int, at: i64) -> c_int {
    // SAFETY: SQLite's buffer has `amount` bytes.
    let to_image = |image: &mut Image| unsafe { status(image.write(at as u64, std::slice::from_raw_parts(from.cast(), amount as usize))) };
    unsafe { with(file, to_image, |m, real| Some(m.xWrite?(real, from, amount, at))) }
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: i64) -> c_int {
    let cut = |image: &mut Image| {
        image.now.resize(size as usize, 0);
        image.pending.push(Op::Truncate(size as u64));
        ffi::SQLITE_OK
    };
    unsafe { with(file, cut, |m, real| Some(m.xTruncate?(real, size))) }
}

unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    unsafe { with(file, |image| status(image.sync()), |m, real| Some(m.xSync?(real, flags))) }
}

unsafe extern "C" fn file_size(file: *mut ffi::sqlite3_file, size: *mut i64) -> c_int {
    let of_image = |image: &mut Image| {
        // SAFETY: SQLite's own variable.
        unsafe { *size = image.now.len() as i64 };
        ffi::SQLITE_OK
    };
    unsafe { with(file, of_image, |m, real| Some(m.xFileSize?(real, size))) }
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    unsafe { delegate(file, |m, real| Some(m.xLock?(real, level))) }
}

unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    unsafe { delegate(file, |m, real| Some(m.xUnlock?(real, level))) }
}

unsafe extern "C" fn check_reserved_lock(file: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    unsafe { delegate(file, |m, real| Some(m.xCheckReservedLock?(real, out))) }
}

unsafe extern "C" fn file_control(file: *mut ffi::sqlite3_file, op: c_int, arg: *mut c_void) -> c_int {
    unsafe { delegate(file, |m, real| Some(m.xFileControl?(real, op, arg))) }
}

unsafe extern "C" fn sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    unsafe { delegate(file, |m, real| Some(m.xSectorSize?(real))) }
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    unsafe { delegate(file, |m, real| Some(m.xDeviceCharacteristics?(real))) }
}

unsafe extern "C" fn shm_map(file: *mut ffi::sqlite3_file, page: c_int, size: c_int, extend: c_int, out: *mut *mut c_void) -> c_int {
    unsafe { delegate(file, |m, real| Some(m.xShmMap?(real, page, size, extend, out))) }
}

unsafe extern "C" fn shm_lock(file: *mut ffi::sqlite3_file, offset: c_int, n: c_int, flags: c_int) -> c_int {
    unsafe { delegate(file, |m, real| Some(m.xShmLock?(real, offset, n, flags))) }
}

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    unsafe {
        delegate(file, |m, real| {
            m.xShmBarrier?(real);
            Some(ffi::SQLITE_OK)
        });
    }
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
    unsafe { delegate(file, |m, real| Some(m.xShmUnmap?(real, delete))) }
}

/// Version 2: with shared memory, and without mapped reads, which would pass the image by.
static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};
