use std::fs::File;
use std::io::Write;

use nix::unistd::ftruncate;

use super::*;
use crate::mem::sigbus;
use crate::virtq::testing::{GPA, SIZE, UVA, layout, memfd, memory};

#[test]
fn translates_and_bounds() {
    let (m, _fd) = memory();
    assert_eq!(m.at_gpa(GPA, 16).unwrap().len(), 16);
    assert!(m.at_gpa(GPA - 1, 16).is_none());
    assert!(m.at_gpa(GPA + SIZE - 8, 16).is_none());
    assert_eq!(m.run(GPA + SIZE - 8, 16, &mut 9).unwrap().len(), 8, "a run ends with its region");
    assert!(m.at_gpa(GPA + SIZE, 1).is_none());
    assert!(m.at_gpa(u64::MAX, 16).is_none());
    assert!(m.at_uva(UVA + SIZE - 16, 16).is_some());
    assert!(m.at_uva(UVA + SIZE - 15, 16).is_none());
}

#[test]
fn refuses_what_is_not_memory_or_too_short() {
    let fd = memfd(SIZE - 1);
    assert!(Region::map(layout(), fd).is_err(), "file shorter than the region");
    let wrap = Layout { gpa: u64::MAX - 4096, ..layout() };
    assert!(Region::map(wrap, memfd(SIZE)).is_err());
    let wrap = Layout { offset: u64::MAX - 4096, ..layout() };
    assert!(Region::map(wrap, memfd(SIZE)).is_err());
    assert!(Region::map(Layout { len: 0, ..layout() }, memfd(SIZE)).is_err());
    let (pipe, _w) = std::io::pipe().unwrap();
    assert!(Region::map(layout(), pipe.into()).is_err());
    let proc = File::open("/proc/self/exe").unwrap();
    let small = Layout { len: 4096, ..layout() };
    assert!(Region::map(small, proc.into()).is_err(), "read-only and perhaps on a disk");
}

#[test]
fn refuses_overlap_and_too_many() {
    let fd = memfd(SIZE);
    let at = |gpa, len| Region::map(Layout { gpa, len, ..layout() }, fd.try_clone().unwrap()).unwrap();
    assert!(GuestMemory::new(vec![at(0, 8192), at(4096, 4096)]).is_err());
    assert!(GuestMemory::new(vec![at(0, 4096), at(4096, 4096)]).is_ok());
    assert!(GuestMemory::new((0..65).map(|i| at(i * 4096, 4096)).collect()).is_err());
}

#[test]
fn a_region_may_start_inside_a_page() {
    let fd = memfd(SIZE);
    let mut file = File::from(fd.try_clone().unwrap());
    file.write_all(&vec![7; 5000]).unwrap();
    let r = Region::map(Layout { offset: 100, len: 4096, ..layout() }, fd).unwrap();
    let m = GuestMemory::new(vec![r]).unwrap();
    let mut b = [0; 8];
    assert_eq!(m.at_gpa(GPA + 4088, 8).unwrap().copy_out(&mut b), 8);
    assert_eq!(b, [7; 8]);
}

#[test]
fn a_file_cut_short_breaks_the_table_and_not_the_process() {
    let (m, fd) = memory();
    let (other, _other_fd) = memory();
    let seg = m.at_gpa(GPA + 0x20_0000, 4).unwrap();
    seg.copy_in(&[1, 2, 3, 4]);
    let before = sigbus::hits();
    ftruncate(&fd, 4096).unwrap();
    let mut b = [9; 4];
    seg.copy_out(&mut b);
    assert_eq!(b, [0; 4], "zero pages stand in");
    seg.copy_in(&[1]);
    assert!(m.broken());
    assert!(!other.broken());
    assert!(sigbus::hits() > before);
}
