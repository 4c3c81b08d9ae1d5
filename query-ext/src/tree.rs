//! Node trees of the planner: typed looks at them.

use std::ffi::{CStr, c_void};

use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;

/// The tag of a node; `T_Invalid` for null.
///
/// # Safety
/// `node` is null or a node.
pub(crate) unsafe fn tag<T>(node: *mut T) -> NodeTag {
    // SAFETY: every node begins with its tag.
    if node.is_null() { NodeTag::T_Invalid } else { unsafe { (*node.cast::<pg_sys::Node>()).type_ } }
}

/// The elements of a pointer list.
///
/// # Safety
/// `list` is null (empty) or a list of pointers to `T`.
pub(crate) unsafe fn items<T>(list: *mut pg_sys::List) -> Vec<*mut T> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: a list has `length` cells.
    unsafe {
        let length = usize::try_from((*list).length).unwrap_or(0);
        (0..length).map(|index| (*(*list).elements.add(index)).ptr_value.cast::<T>()).collect()
    }
}

/// The elements of an OID list.
///
/// # Safety
/// `list` is null (empty) or a list of OIDs.
pub(crate) unsafe fn oids(list: *mut pg_sys::List) -> Vec<pg_sys::Oid> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: a list has `length` cells.
    unsafe {
        let length = usize::try_from((*list).length).unwrap_or(0);
        (0..length).map(|index| (*(*list).elements.add(index)).oid_value).collect()
    }
}

/// The elements of a list of integers.
///
/// # Safety
/// `list` is null (empty) or a list of integers.
pub(crate) unsafe fn integers(list: *mut pg_sys::List) -> Vec<i32> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: a list has `length` cells.
    unsafe {
        let length = usize::try_from((*list).length).unwrap_or(0);
        (0..length).map(|index| (*(*list).elements.add(index)).int_value).collect()
    }
}

/// A list of these pointers.
///
/// # Safety
/// The pointers are nodes in memory that lives as long as the list.
pub(crate) unsafe fn list_of<T>(items: &[*mut T]) -> *mut pg_sys::List {
    // SAFETY: lappend builds a list from null.
    items.iter().fold(std::ptr::null_mut(), |list, item| unsafe { pg_sys::lappend(list, item.cast::<c_void>()) })
}

/// A zeroed node with its tag, in the current memory context.
///
/// # Safety
/// `T` is the struct of `tag`, and all zeroes is a valid value of it.
pub(crate) unsafe fn make<T>(tag: NodeTag) -> *mut T {
    // SAFETY: palloc0 of the struct's size; every node begins with its tag.
    unsafe {
        let node = pg_sys::palloc0(size_of::<T>()).cast::<T>();
        (*node.cast::<pg_sys::Node>()).type_ = tag;
        node
    }
}

/// A deep copy.
///
/// # Safety
/// `node` is null or a node.
pub(crate) unsafe fn copy<T>(node: *mut T) -> *mut T {
    // SAFETY: per the contract.
    unsafe { pg_sys::copyObjectImpl(node.cast::<c_void>().cast_const()).cast() }
}

/// A range table's entry, by its number from 1.
///
/// # Safety
/// `rtable` is a range table with that entry.
pub(crate) unsafe fn rte(rtable: *mut pg_sys::List, number: i32) -> *mut pg_sys::RangeTblEntry {
    // SAFETY: per the contract.
    unsafe { items::<pg_sys::RangeTblEntry>(rtable)[usize::try_from(number - 1).unwrap_or(usize::MAX)] }
}

/// A palloc'd C string as a `String`, freed.
///
/// # Safety
/// `text` is null or a palloc'd NUL-terminated string.
pub(crate) unsafe fn taken(text: *mut std::ffi::c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: per the contract.
    unsafe {
        let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
        pg_sys::pfree(text.cast());
        Some(owned)
    }
}

/// A context's children mapped by `f`: `expression_tree_mutator` with a closure.
///
/// # Safety
/// `node` is an expression node; what `f` returns is null or a node of a fitting kind.
pub(crate) unsafe fn map_children(
    node: *mut pg_sys::Node,
    f: &mut dyn FnMut(*mut pg_sys::Node) -> *mut pg_sys::Node,
) -> *mut pg_sys::Node {
    struct Context<'a> {
        f: &'a mut dyn FnMut(*mut pg_sys::Node) -> *mut pg_sys::Node,
    }
    #[pgrx::pg_guard]
    unsafe extern "C-unwind" fn call(node: *mut pg_sys::Node, context: *mut c_void) -> *mut pg_sys::Node {
        if node.is_null() {
            return node;
        }
        // SAFETY: `context` is the Context below, alive during the call.
        unsafe { ((*context.cast::<Context<'_>>()).f)(node) }
    }
    let mut context = Context { f };
    // SAFETY: per the contract; the context is of the kind that `call` reads.
    unsafe { crate::version::mutated(node, call, (&raw mut context).cast()) }
}

/// Whether `f` holds for any node of an expression (not of its sub-queries).
///
/// # Safety
/// `node` is null or an expression, or a list of them.
pub(crate) unsafe fn any(node: *mut pg_sys::Node, f: &mut dyn FnMut(*mut pg_sys::Node) -> bool) -> bool {
    #[pgrx::pg_guard]
    unsafe extern "C-unwind" fn call(node: *mut pg_sys::Node, context: *mut c_void) -> bool {
        if node.is_null() {
            return false;
        }
        // SAFETY: `context` is the pointer to the closure below, alive during the call.
        unsafe {
            let f = &mut *context.cast::<&mut dyn FnMut(*mut pg_sys::Node) -> bool>();
            if tag(node) == NodeTag::T_CaseWhen {
                // The mutator hands these out, and the walker does not know them outside of their CASE.
                let when = node.cast::<pg_sys::CaseWhen>();
                return f(node) || call((*when).expr.cast(), context) || call((*when).result.cast(), context);
            }
            f(node) || pg_sys::expression_tree_walker(node, Some(call), context)
        }
    }
    let mut f: &mut dyn FnMut(*mut pg_sys::Node) -> bool = f;
    // SAFETY: per the contract; `call` handles null and the tags that the walker knows.
    unsafe { call(node, (&raw mut f).cast()) }
}
