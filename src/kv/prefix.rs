//! Which beginnings of sequences the cache still holds: a tree of token blocks.
//!
//! A node stands for one block of tokens after one beginning, so a node is a beginning: its path from the root spells
//! every token of it. A child is found by a chained hash (its parent's, and its own tokens), and believed only when its
//! parent and its tokens are the same: a collision of hashes is a miss, never a wrong hit. The first level hangs under
//! a root for each salt.
//!
//! A node has a page in each group of the cache, or has lost it there (the window, or someone who needed room, took it).
//! It is kept as long as something stands on it: a page, a child, or a sequence that is about to add one
//! ([`PrefixIndex::pin`]).

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

use crate::text::TokenId;

use super::PageId;

/// A beginning of sequences, in whole blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeId(u32);

#[derive(Debug)]
struct Node {
    origin: Origin,
    /// Hash of everything from the salt to the last token.
    hash: u64,
    /// One for each group.
    pages: Box<[Option<PageId>]>,
    children: u32,
    pins: u32,
}

#[derive(Debug)]
enum Origin {
    Salt(Option<String>),
    Block { parent: NodeId, tokens: Box<[TokenId]> },
}

/// The tree. `S` makes the hashes; the default's key is drawn at random, so that nobody can prepare collisions.
#[derive(Debug)]
pub(super) struct PrefixIndex<S = RandomState> {
    hasher: S,
    /// Groups of the cache.
    groups: usize,
    nodes: Vec<Option<Node>>,
    /// Places in `nodes` that are empty.
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
        // Ids are handed out with a pin, a page or a child on them, and die with the last of these.
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

    /// The empty beginning under a salt, where anything is known under it.
    pub(super) fn root(&self, salt: Option<&str>) -> Option<NodeId> {
        // The map's key is an Option<String>; a borrowed one would need a lookup type of its own.
        self.roots.get(&salt.map(str::to_owned)).copied()
    }

    /// The empty beginning under a salt, made where it is not known, and pinned.
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

    /// Is this the node of `tokens` after `parent`?
    fn is(&self, node: NodeId, parent: NodeId, tokens: &[TokenId]) -> bool {
        match &self.node(node).origin {
            Origin::Salt(_) => false,
            Origin::Block { parent: own_parent, tokens: own } => *own_parent == parent && **own == *tokens,
        }
    }

    /// The beginning that `tokens` after `parent` make, where it is known.
    pub(super) fn child(&self, parent: NodeId, tokens: &[TokenId]) -> Option<NodeId> {
        let child = *self.children.get(&self.chained(parent, tokens))?;
        self.is(child, parent, tokens).then_some(child)
    }

    /// The beginning that `tokens` after the pinned `parent` make, made where it is not known, and pinned in its
    /// place. None, and nothing is pinned, where another beginning has its hash.
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

    /// Keeps a node until [`PrefixIndex::unpin`].
    pub(super) fn pin(&mut self, id: NodeId) {
        self.node_mut(id).pins += 1;
    }

    pub(super) fn unpin(&mut self, id: NodeId) {
        self.node_mut(id).pins -= 1;
        self.prune(id);
    }

    /// The page of a group with the keys and values of the node's last block.
    pub(super) fn page(&self, id: NodeId, group: usize) -> Option<PageId> {
        self.node(id).pages[group]
    }

    /// Gives a node without a page of a group one.
    pub(super) fn set_page(&mut self, id: NodeId, group: usize, page: PageId) {
        self.node_mut(id).pages[group] = Some(page);
    }

    /// Takes the node's page of a group from it.
    pub(super) fn clear_page(&mut self, id: NodeId, group: usize) {
        self.node_mut(id).pages[group] = None;
        self.prune(id);
    }

    /// Removes the node if nothing stands on it, and those below it that then have nothing standing on them.
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

    /// Nodes that are kept.
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
