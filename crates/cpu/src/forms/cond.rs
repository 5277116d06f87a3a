//! The sixteen conditions of Jcc, SETcc and CMOVcc.

use crate::Flags;

/// A condition on the arithmetic flags.
pub(super) trait Cond {
    fn holds(flags: Flags) -> bool;
}

/// Declares conditions, each with its opposite.
macro_rules! conditions {
    ($($name:ident, $opposite:ident: |$flags:ident| $holds:expr;)*) => {
        $(
            pub(super) struct $name;
            pub(super) struct $opposite;

            impl Cond for $name {
                #[inline(always)]
                fn holds($flags: Flags) -> bool {
                    $holds
                }
            }

            impl Cond for $opposite {
                #[inline(always)]
                fn holds($flags: Flags) -> bool {
                    !$holds
                }
            }
        )*
    };
}

conditions! {
    O, No: |flags| flags.of();
    B, Ae: |flags| flags.cf();
    E, Ne: |flags| flags.zf();
    Be, A: |flags| flags.cf() | flags.zf();
    S, Ns: |flags| flags.sf();
    P, Np: |flags| flags.pf();
    L, Ge: |flags| flags.less();
    Le, G: |flags| flags.less() | flags.zf();
}
