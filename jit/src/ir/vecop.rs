//! Vector operations: the sub-operations of `vec`, `vectoint` and `vecfromint`, declared once.

macro_rules! sub_ops {
    ($(#[$doc:meta])* $name:ident; $($id:ident $text:literal,)*) => {
        $(#[$doc])*
        #[repr(u16)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[allow(missing_docs)]
        pub enum $name { $($id,)* }

        impl $name {
            /// All of them in order.
            pub const ALL: &[$name] = &[$($name::$id,)*];
            /// Name in the text form.
            pub fn name(self) -> &'static str {
                match self { $($name::$id => $text,)* }
            }
            /// From the constant of the operation.
            pub fn from_imm(imm: i64) -> Option<$name> {
                Self::ALL.get(usize::try_from(imm).ok()?).copied()
            }
            /// Looks a name up.
            pub fn by_name(name: &str) -> Option<$name> {
                Self::ALL.iter().copied().find(|o| o.name() == name)
            }
        }
    };
}

sub_ops! {
    /// `d = f(a, b, imm8)` on 128-bit vectors; named after the SSE instruction whose result it is.
    VecOp;
    Pxor "pxor",
    Paddb "paddb",
}

sub_ops! {
    /// Integer results of vectors.
    VecToInt;
    Pmovmskb "pmovmskb",
}

sub_ops! {
    /// Vector results of a vector and an integer.
    VecFromInt;
    Zext "zext",
}
