#!/bin/busybox sh
# The guests' init: reads jobs from the console and runs each in the background, so that a test can talk to the guest
# while something else runs in it. src/guest/console.rs is the other end; the lines that start with "@" are the protocol.
export PATH=/bin:/usr/bin:/sbin:/usr/sbin HOME=/tmp
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev 2>/dev/null
/bin/busybox --install -s /bin
dmesg -n 1
while read -r module; do insmod "/modules/$module.ko" || echo "cannot load $module"; done </modules/order
ip link set lo up
stty -echo

job() {
  base64 -d <"/tmp/$1.b64" >"/tmp/$1.sh"
  setsid sh "/tmp/$1.sh" >"/tmp/$1.out" 2>&1 </dev/null
  code=$?
  # One at a time: the console is no pipe, and long lines are not written at once.
  until mkdir /tmp/speaking 2>/dev/null; do usleep 1000; done
  echo "@done $1 $code $(base64 -w 0 "/tmp/$1.out")"
  rmdir /tmp/speaking
  rm -f "/tmp/$1.b64" "/tmp/$1.sh" "/tmp/$1.out"
}

echo "@up $(uname -r)"
while read -r verb id rest; do
  case $verb in
    new) printf %s "$rest" >"/tmp/$id.b64"; echo "@added $id" ;;
    add) printf %s "$rest" >>"/tmp/$id.b64"; echo "@added $id" ;;
    # Once, however often it is said.
    run) if mkdir "/tmp/$id.run" 2>/dev/null; then job "$id" & fi ;;
    off) break ;;
  esac
done
poweroff -f
