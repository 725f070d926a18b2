/* The explorer, part 2 of 6: a robot walking, drawn with three.js or flat. */
'use strict';

// ---- three dimensions

function solid(part) {
  const [a, b, c] = part.size;
  const along = shape => shape.rotateX(Math.PI / 2); // MuJoCo's axis is z, three's is y
  if (part.shape === 'box') return new THREE.BoxGeometry(2 * a, 2 * b, 2 * c);
  if (part.shape === 'capsule') return along(new THREE.CapsuleGeometry(a, 2 * b, 6, 14));
  if (part.shape === 'cylinder') return along(new THREE.CylinderGeometry(a, a, 2 * b, 20));
  const sphere = new THREE.SphereGeometry(1, 20, 14);
  return part.shape === 'ellipsoid' ? sphere.scale(a, b, c) : sphere.scale(a, a, a);
}

function body(robot) {
  const links = [];
  for (const part of robot.parts) {
    const link = (links[part.link] ??= new THREE.Group());
    const mesh = new THREE.Mesh(
      solid(part),
      new THREE.MeshLambertMaterial({color: part.colour, transparent: true}),
    );
    const [w, x, y, z] = part.quat;
    mesh.position.set(...part.pos);
    mesh.quaternion.set(x, y, z, w);
    mesh.castShadow = true;
    if (part.shape === 'sphere') mesh.scale.setScalar(1.03); // not level with the limb it ends
    link.add(mesh);
  }
  return links;
}

function floorTexture(light, dark) {
  const tile = document.createElement('canvas');
  tile.width = tile.height = 128;
  const pen = tile.getContext('2d');
  pen.fillStyle = light;
  pen.fillRect(0, 0, 128, 128);
  pen.fillStyle = dark;
  pen.fillRect(0, 0, 64, 64);
  pen.fillRect(64, 64, 64, 64);
  const texture = new THREE.CanvasTexture(tile);
  texture.wrapS = texture.wrapT = THREE.RepeatWrapping;
  texture.repeat.set(200, 200);
  texture.anisotropy = 8;
  texture.colorSpace = THREE.SRGBColorSpace;
  return texture;
}

class Stage {
  // one robot, any number of bodies, drawn with WebGL
  constructor(canvas, robot, style) {
    this.canvas = canvas;
    this.robot = robot;
    this.bodies = [];
    this.renderer = new THREE.WebGLRenderer({canvas, antialias: true});
    this.renderer.shadowMap.enabled = true;
    this.scene = new THREE.Scene();
    this.camera = new THREE.PerspectiveCamera(30, 1, 0.1, 200);
    this.camera.up.set(0, 0, 1);
    this.target = new THREE.Vector3(0, 0, robot.height * 0.45);
    this.lights();
    if (!robot.planar) this.orbit();
    this.restyle(style);
    this.fresh = true;
  }

  lights() {
    this.sun = new THREE.DirectionalLight('#ffffff', 2);
    this.sun.castShadow = true;
    this.sun.shadow.mapSize.set(1024, 1024);
    Object.assign(this.sun.shadow.camera, {
      left: -6,
      right: 6,
      top: 6,
      bottom: -6,
      near: 0.5,
      far: 30,
    });
    this.scene.add(this.sun, this.sun.target, new THREE.HemisphereLight('#ffffff', '#8a8578', 2));
  }

  orbit() {
    this.controls = new THREE.OrbitControls(this.camera, this.canvas);
    Object.assign(this.controls, {enablePan: false, enableZoom: false, maxPolarAngle: 1.5});
    this.canvas.style.touchAction = 'pan-y'; // so that a finger can still scroll the page
  }

  restyle(style) {
    if (this.floor) {
      this.floor.material.map.dispose();
      this.scene.remove(this.floor);
    }
    this.scene.background = new THREE.Color(style.sky);
    this.scene.fog = new THREE.Fog(style.sky, 12, 32);
    const map = floorTexture(style.floor, style.tile);
    this.floor = new THREE.Mesh(
      new THREE.PlaneGeometry(400, 400),
      new THREE.MeshLambertMaterial({map}),
    );
    this.floor.receiveShadow = true;
    this.scene.add(this.floor);
  }

  show(films) {
    this.bodies.flatMap(b => b.links).forEach(link => this.scene.remove(link));
    const side = lanes(films.length, this.robot.gap);
    this.bodies = films.map((film, i) => ({film, y: side[i], links: body(this.robot)}));
    this.bodies.flatMap(b => b.links).forEach(link => this.scene.add(link));
    this.fresh = true;
  }

  draw(seconds) {
    const centre = [0, 0];
    for (const {film, y, links} of this.bodies) {
      const pose = poseAt(film, seconds),
        pale = film.fell && seconds > duration(film);
      links.forEach((link, l) => {
        link.position.set(pose[7 * l], pose[7 * l + 1] + y, pose[7 * l + 2]);
        link.quaternion.set(pose[7 * l + 4], pose[7 * l + 5], pose[7 * l + 6], pose[7 * l + 3]);
        link.children.forEach(mesh => {
          mesh.material.opacity = pale ? 0.45 : 1;
        });
      });
      centre[0] += pose[0] / this.bodies.length;
      centre[1] += (pose[1] + y) / this.bodies.length;
    }
    this.follow(...centre);
    this.renderer.render(this.scene, this.camera);
  }

  follow(x, y) {
    const far =
      this.robot.height * (this.robot.planar ? 3.4 : 3.3) +
      this.robot.gap * 0.9 * (this.bodies.length - 1);
    const next = new THREE.Vector3(x, y, this.robot.height * 0.45);
    if (this.fresh || this.robot.planar) {
      const away = this.robot.planar ? [0, -1, 0.22] : [-0.55, -1, 0.5];
      this.camera.position.copy(next).addScaledVector(new THREE.Vector3(...away).normalize(), far);
    } else this.camera.position.add(next.clone().sub(this.target));
    this.target.copy(next);
    if (this.controls) {
      this.controls.target.copy(next);
      this.controls.update();
    } else this.camera.lookAt(next);
    this.sun.position.copy(next).add(new THREE.Vector3(-2, -4, 8));
    this.sun.target.position.copy(next);
    this.fresh = false;
  }

  resize(width, height, ratio) {
    this.renderer.setPixelRatio(ratio);
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / height;
    this.camera.updateProjectionMatrix();
  }

  close() {
    this.controls?.dispose();
    this.renderer.dispose();
    this.renderer.forceContextLoss();
  }
}

// ---- two dimensions, for browsers without WebGL

const turned = ([w, x, y, z], [a, b, c]) => {
  const u = [2 * (y * c - z * b), 2 * (z * a - x * c), 2 * (x * b - y * a)];
  return [
    a + w * u[0] + y * u[2] - z * u[1],
    b + w * u[1] + z * u[0] - x * u[2],
    c + w * u[2] + x * u[1] - y * u[0],
  ];
};

class FlatStage {
  // the same bodies from the side, as thick lines
  constructor(canvas, robot, style) {
    Object.assign(this, {canvas, robot, style, films: [], pen: canvas.getContext('2d')});
  }
  restyle(style) {
    this.style = style;
  }
  show(films) {
    this.films = films;
  }
  resize(width, height, ratio) {
    Object.assign(this.canvas, {width: width * ratio, height: height * ratio});
  }
  close() {}

  ends(part, pose) {
    const at = 7 * part.link,
      link = pose.slice(at + 3, at + 7);
    const half = ['capsule', 'cylinder'].includes(part.shape) ? part.size[1] : 0;
    return [-half, half].map(z => {
      const p = turned(
        link,
        turned(part.quat, [0, 0, z]).map((v, i) => v + part.pos[i]),
      );
      return p.map((v, i) => v + pose[at + i]);
    });
  }

  draw(seconds) {
    const {pen, canvas, robot} = this,
      scale = canvas.height / (robot.height * 1.7);
    const poses = this.films.map(film => poseAt(film, seconds)),
      x0 = mean(poses.map(p => p[0]));
    const place = ([x, y, z]) => [
      canvas.width / 2 + (x - x0) * scale,
      canvas.height * 0.86 - (z + y * 0.12) * scale,
    ];
    pen.fillStyle = this.style.sky;
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.fillStyle = this.style.tile;
    pen.fillRect(0, canvas.height * 0.86, canvas.width, canvas.height);
    pen.fillStyle = this.style.floor;
    for (let x = Math.floor(x0) - 9; x < x0 + 9; x++)
      if (x % 2 === 0)
        pen.fillRect(place([x, 0, 0])[0], canvas.height * 0.86, scale, canvas.height);
    pen.lineCap = 'round';
    poses.forEach((pose, i) => {
      const film = this.films[i],
        dy = lanes(poses.length, robot.gap)[i];
      pen.globalAlpha = film.fell && seconds > duration(film) ? 0.45 : 1;
      for (const part of robot.parts) {
        const [a, b] = this.ends(part, pose).map(p => place([p[0], p[1] + dy, p[2]]));
        pen.strokeStyle = part.colour;
        pen.lineWidth = 2 * part.size[0] * scale;
        pen.beginPath();
        pen.moveTo(...a);
        pen.lineTo(b[0] + 0.01, b[1]);
        pen.stroke();
      }
    });
    pen.globalAlpha = 1;
  }
}

function openStage(canvas, robot, style) {
  try {
    return new Stage(canvas, robot, style);
  } catch (error) {
    // a canvas whose WebGL failed gives no other context
    const plain = canvas.cloneNode();
    canvas.replaceWith(plain);
    return new FlatStage(plain, robot, style);
  }
}
