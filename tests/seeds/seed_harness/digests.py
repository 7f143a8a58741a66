"""Short hashes of the cells that the catalogue knows; `python -m seed_harness digests` prints them."""

from __future__ import annotations

DIGESTS: dict[str, str] = {
    "000": """
        c724cd58 2869d12e 1d6519c8 81c44dbb 9387dc3b 03d15647 ca671c8b 0cd845cb f84208a9 05a4e69f
        6c72eb13 3e699640 bdea2ff7 3c826d94 6dfdaa61 00f9c0c2 7c6286dc a485ec0a 51ee965b c5212a68
        068d7306 79e570b3 6a01bfb6 032a3a84 79e570b3 5a73fd34 6c666834 cf916d86 07b1ddc6 8e16aa80
        fa4d01e3 da557682 d146e987 6a797115 f2a4211b 6a797115 68f3c7f7 3137bf2b cf7bc73a de4e50d6
        fedb1577 77ab27c2 cf26d684 501e1337
    """,
    "001": """
        5a7744fa fe111976 d9a8e2a8 b3967a92 ba4052be b010630d 8a3476b6 aac46a08 1187d32f 83b890dc
        a7b5d555 217be585 e9aa30d9 5e3340e5 2355ac1d c32ea3cd 2081c64f a9c53920 9a386fab 3018f7ae
        58f9ee41 59316f28 eedcab6b
    """,
    "002": """
        a749d4a8 1d6519c8 81c44dbb fdf270b0 b365242a ca671c8b 0cd845cb f84208a9 a2342b87 53be1d25
        02efd511 04dff4e8 71a52b0c 5d5f979c 341e756d 6e169efc 8a4697c9 78a29061 47f6665c d4c4ef15
        34b6be44 2d2974db ca6ea851 8adf4e3b 3956e14e cfa73349 68f3c7f7 3137bf2b cf7bc73a 12e0cd7e
        9c400f6b 7711c2c9 764009ad 94ed7c89 fa66dc62 c76a49e1 6d6de7b9 4082b5e2 4c2c13fd e736d3b7
        4f0d9dda 0cd845cb f364daad a52a65df 11559863 e692fff8 84b7c7fb a3795ac6 b5cd0cf6 7f35020e
        5b76e6b3 b5cd0cf6 cb057c3d 0c6c2455 d502a442
    """,
    "003": """
        5a7744fa fe111976 d9a8e2a8 b3967a92 ba4052be b010630d 8a3476b6 aac46a08 1187d32f 83b890dc
        a7b5d555 217be585 e9aa30d9 5e3340e5 2355ac1d c32ea3cd 2081c64f a9c53920 9a386fab 3018f7ae
        58f9ee41 59316f28 eedcab6b
    """,
    "004": """
        03d4d5b2 e7995d31 80372743
    """,
}
