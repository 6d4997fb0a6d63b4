# Values that are known from elsewhere: tests/userland.rs compares what this prints with them.
import decimal, fractions, hashlib, json, math, re, struct, threading, zlib

print("power", 3**200)
print("factorial", math.factorial(40))
print("modular", pow(5, 2**89 - 3, 2**89 - 1) * 5 % (2**89 - 1))
unit = 10**60
arctan = lambda x: sum((-1) ** k * unit // ((2 * k + 1) * x ** (2 * k + 1)) for k in range(90))
print("pi", str(4 * (4 * arctan(5) - arctan(239)))[:51])
decimal.getcontext().prec = 40
print("root", decimal.Decimal(2).sqrt())
print("floats", 0.1 + 0.2, 1e23, 5e-324, 2.0**0.5, math.pi, -0.0, 1.7976931348623157e308)
print("functions", [f"{f(1.5):.12f}" for f in (math.sin, math.cos, math.tan, math.exp, math.log, math.atan, math.gamma)])
print("sum", math.fsum([0.1] * 10), sum(range(10**5)), fractions.Fraction(1, 3) + fractions.Fraction(1, 6))
print("bits", struct.pack(">dfe", 1 / 3, 1 / 3, 1 / 3).hex(), zlib.crc32(b"123456789"), zlib.adler32(b"Wikipedia"))
print("text", re.sub(r"(\w+) (\w+)", r"\2 \1", "bell jar"), json.dumps({"é": [1.5, None]}), sorted("glass vessel")[-3:])
squares = []
threads = [threading.Thread(target=lambda n=n: squares.append(n * n)) for n in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print("threads", sorted(squares))
for name in "md5", "sha1", "sha256", "sha512", "sha3_256", "blake2b":
    print("digest", name, hashlib.new(name, open("data", "rb").read()).hexdigest())
