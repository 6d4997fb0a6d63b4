# Values that are known from elsewhere: tests/userland.rs compares what this prints with them.
use strict;
use warnings;
use Digest::SHA qw(sha1_hex sha512_hex);
use Math::BigInt;

print "floats ", 0.1 + 0.2, " ", sprintf("%.15f %.10e %d", exp(1), 2**0.5, -7 / 2), "\n";
print "power ", Math::BigInt->new(2)->bpow(128), " ", Math::BigInt->new(30)->bfac, "\n";
print "digest ", sha1_hex("abc"), " ", substr(sha512_hex("abc"), 0, 32), "\n";
print "sorted ", join(",", sort { $a <=> $b } map { $_ * 7919 % 1009 } 1 .. 10), "\n";
my %words;
$words{$_}++ for "the jar and the bell and the glass" =~ /\w+/g;
print "words ", join(" ", map { "$_=$words{$_}" } sort keys %words), " ", scalar reverse("vessel"), "\n";
