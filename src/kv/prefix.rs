//! The prefix index: a radix tree of token blocks.
//!
//! A node is one block of tokens after a prefix, so it identifies a prefix: the path from the root spells all of its
//! tokens. A child is found by a chained hash (of its parent's hash and its tokens), and the parent and tokens are then
//! compared, so a hash collision is a miss and never a wrong hit. There is one root for each salt.
//!
//! A node may have a page in each cache group; a page is lost when it leaves the window or is evicted. A node lives as
//! long as it has a page, a child or a pin ([`PrefixIndex::pin`]).

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use crate::text::TokenId;

use super::PageId;

/// A prefix of full blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeId(u32);

#[derive(Debug)]
struct Node {
    origin: Origin,
    /// Hash of the salt and all tokens.
    hash: u64,
    /// One per group.
    pages: Box<[Option<PageId>]>,
    children: u32,
    pins: u32,
}

#[derive(Debug)]
enum Origin {
    Salt(Option<String>),
    Block { parent: NodeId, tokens: Box<[TokenId]> },
}

/// The tree. `S` is the hasher; the default has a random key, so that collisions cannot be prepared.
#[derive(Debug)]
pub(super) struct PrefixIndex<S = RandomState> {
    hasher: S,
    /// Number of cache groups.
    groups: usize,
    nodes: Vec<Option<Node>>,
    /// Free entries of `nodes`.
    vacant: Vec<NodeId>,
    roots: HashMap<Option<String>, NodeId>,
    children: HashMap<u64, NodeId>,
}

impl PrefixIndex {
    pub(super) fn new(groups: usize) -> PrefixIndex {
        PrefixIndex::with_hasher(groups, RandomState::new())
    }
}

impl<S: BuildHasher> PrefixIndex<S> {
    pub(super) fn with_hasher(groups: usize, hasher: S) -> PrefixIndex<S> {
        let (roots, children) = (HashMap::new(), HashMap::new());
        PrefixIndex { hasher, groups, nodes: Vec::new(), vacant: Vec::new(), roots, children }
    }

    fn node(&self, id: NodeId) -> &Node {
        // An id is valid as long as its node has a pin, a page or a child.
        self.nodes[id.0 as usize].as_ref().expect("a node that something stands on")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes[id.0 as usize].as_mut().expect("a node that something stands on")
    }

    fn add(&mut self, origin: Origin, hash: u64) -> NodeId {
        let node = Node { origin, hash, pages: vec![None; self.groups].into(), children: 0, pins: 0 };
        match self.vacant.pop() {
            Some(id) => {
                self.nodes[id.0 as usize] = Some(node);
                id
            }
            None => {
                self.nodes.push(Some(node));
                NodeId(self.nodes.len() as u32 - 1)
            }
        }
    }

    /// The root of a salt. `None` if nothing is cached under it.
    pub(super) fn root(&self, salt: Option<&str>) -> Option<NodeId> {
        // The map's key is an `Option<String>`; a borrowed lookup would need a type of its own.
        self.roots.get(&salt.map(str::to_owned)).copied()
    }

    /// The root of a salt, created if missing, and pinned.
    pub(super) fn pin_root(&mut self, salt: Option<&str>) -> NodeId {
        let root = match self.root(salt) {
            Some(root) => root,
            None => {
                let salt = salt.map(str::to_owned);
                let hash = self.hasher.hash_one(&salt);
                let origin = Origin::Salt(salt.clone());
                let root = self.add(origin, hash);
                self.roots.insert(salt, root);
                root
            }
        };
        self.pin(root);
        root
    }

    fn chained(&self, parent: NodeId, tokens: &[TokenId]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        self.node(parent).hash.hash(&mut hasher);
        tokens.hash(&mut hasher);
        hasher.finish()
    }

    /// Returns `true` if `node` is the child of `parent` with these tokens.
    fn is(&self, node: NodeId, parent: NodeId, tokens: &[TokenId]) -> bool {
        match &self.node(node).origin {
            Origin::Salt(_) => false,
            Origin::Block { parent: own_parent, tokens: own } => *own_parent == parent && **own == *tokens,
        }
    }

    /// The child of `parent` with these tokens. `None` if there is none.
    pub(super) fn child(&self, parent: NodeId, tokens: &[TokenId]) -> Option<NodeId> {
        let child = *self.children.get(&self.chained(parent, tokens))?;
        self.is(child, parent, tokens).then_some(child)
    }

    /// Moves the pin from `parent` to its child with these tokens, created if missing. `None` on a hash collision; then
    /// only `parent` is unpinned.
    pub(super) fn pin_child(&mut self, parent: NodeId, tokens: &[TokenId]) -> Option<NodeId> {
        let hash = self.chained(parent, tokens);
        let child = match self.children.get(&hash) {
            Some(&known) if self.is(known, parent, tokens) => Some(known),
            Some(_) => None,
            None => {
                let origin = Origin::Block { parent, tokens: tokens.into() };
                let child = self.add(origin, hash);
                self.children.insert(hash, child);
                self.node_mut(parent).children += 1;
                Some(child)
            }
        };
        if let Some(child) = child {
            self.pin(child);
        }
        self.unpin(parent);
        child
    }

    /// Keeps a node alive until [`PrefixIndex::unpin`].
    pub(super) fn pin(&mut self, id: NodeId) {
        self.node_mut(id).pins += 1;
    }

    pub(super) fn unpin(&mut self, id: NodeId) {
        self.node_mut(id).pins -= 1;
        self.prune(id);
    }

    /// The page of a group that holds the node's block.
    pub(super) fn page(&self, id: NodeId, group: usize) -> Option<PageId> {
        self.node(id).pages[group]
    }

    /// Sets the node's page of a group, which must be missing.
    pub(super) fn set_page(&mut self, id: NodeId, group: usize, page: PageId) {
        self.node_mut(id).pages[group] = Some(page);
    }

    /// Clears the node's page of a group.
    pub(super) fn clear_page(&mut self, id: NodeId, group: usize) {
        self.node_mut(id).pages[group] = None;
        self.prune(id);
    }

    /// Removes the node if nothing keeps it alive, and then its ancestors likewise.
    fn prune(&mut self, mut id: NodeId) {
        loop {
            let node = self.node(id);
            if node.pages.iter().any(Option::is_some) || node.children > 0 || node.pins > 0 {
                return;
            }
            let Some(node) = self.nodes[id.0 as usize].take() else { return };
            self.vacant.push(id);
            match node.origin {
                Origin::Salt(salt) => {
                    self.roots.remove(&salt);
                    return;
                }
                Origin::Block { parent, .. } => {
                    self.children.remove(&node.hash);
                    self.node_mut(parent).children -= 1;
                    id = parent;
                }
            }
        }
    }

    /// Number of live nodes.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.nodes.len() - self.vacant.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u32]) -> Vec<TokenId> {
        ids.iter().copied().map(TokenId).collect()
    }

    #[test]
    fn a_path_is_kept_by_what_stands_on_it() {
        let mut index = PrefixIndex::new(2);
        let root = index.pin_root(None);
        let first = index.pin_child(root, &ids(&[1, 2])).unwrap();
        let second = index.pin_child(first, &ids(&[3, 4])).unwrap();
        index.set_page(second, 0, PageId(5));
        index.set_page(second, 1, PageId(6));
        index.unpin(second);
        assert_eq!(index.len(), 3);
        index.clear_page(second, 1);
        let found = index.child(index.child(index.root(None).unwrap(), &ids(&[1, 2])).unwrap(), &ids(&[3, 4]));
        assert_eq!(found.and_then(|node| index.page(node, 0)), Some(PageId(5)));
        assert_eq!(index.page(second, 1), None);
        index.clear_page(second, 0);
        assert_eq!(index.len(), 0);
        assert_eq!(index.root(None), None);
    }

    #[test]
    fn salts_and_beginnings_keep_equal_blocks_apart() {
        let mut index = PrefixIndex::new(1);
        let (plain, salted) = (index.pin_root(None), index.pin_root(Some("tenant")));
        let child = index.pin_child(plain, &ids(&[1])).unwrap();
        assert_eq!(index.child(salted, &ids(&[1])), None);
        assert_eq!(index.child(child, &ids(&[1])), None);
        assert_eq!(index.root(Some("")), None);
    }

    #[test]
    fn a_collision_is_a_miss() {
        #[derive(Default, Clone)]
        struct Same;
        impl Hasher for Same {
            fn finish(&self) -> u64 {
                7
            }
            fn write(&mut self, _: &[u8]) {}
        }
        let mut index = PrefixIndex::with_hasher(1, std::hash::BuildHasherDefault::<Same>::default());
        let root = index.pin_root(None);
        index.pin(root);
        let first = index.pin_child(root, &ids(&[1])).unwrap();
        assert_eq!(index.child(root, &ids(&[1])), Some(first));
        assert_eq!(index.child(root, &ids(&[2])), None);
        assert_eq!(index.child(first, &ids(&[1])), None);
        assert_eq!(index.pin_child(root, &ids(&[2])), None);
    }
}
